"""A model folder checked both ways: every parameter of the network has a tensor, every tensor a place, and the tokenizer fits. From headers alone.

`check_headers` needs no torch and takes milliseconds; `check_network` asks transformers, on the meta device, where nothing is read or computed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import safe_open

from console import UserError

_FLOATS = {"F64", "F32", "F16", "BF16"}
_QUANTISED = re.compile(
    r"(weight_scale(_inv)?|weight_packed|input_scale|qweight|qzeros|g_idx|absmax|quant_map|quant_state\.\w+|_blocks|_scales)$"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings|embedding)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech|video|multi_modal|mm_projector|embed_positions|position_embeddings")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_COMPARED_ROWS = 64
_GIVE = "give the model as it was trained, in bfloat16, float16 or float32 safetensors"


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor as its file announces it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def headers(files: Sequence[Path]) -> dict[str, Header]:
    """Of every tensor in these safetensors, by name."""
    found = {}
    for path in files:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 – no mapping
                piece = file.get_slice(name)
                found[name] = Header(path, piece.get_dtype(), tuple(piece.get_shape()))
    return found


def check_headers(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Header], grown: bool = False) -> None:
    """UserError for quantised weights, and for tokens that the embedding has no row for (`grown`: it will be made larger)."""
    for part in (config, config.get("text_config") or {}):
        if isinstance(quantised := part.get("quantization_config"), dict):
            method = quantised.get("quant_method", "unknown")
            raise UserError(
                f"{folder / 'config.json'}: the weights are quantised (quant_method {method}), which training does not read; {_GIVE}"
            )
    for name, header in tensors.items():
        if _QUANTISED.search(name):
            raise UserError(f"{header.file}: {name} belongs to quantised weights, which training does not read; {_GIVE}")
        if header.dtype not in _FLOATS and name.endswith(".weight"):
            raise UserError(f"{header.file}: {name} is stored as {header.dtype}, no plain float; {_GIVE}")
    if config.get("tie_word_embeddings"):
        _check_tie(folder, tensors, next(filter(_OUTPUT.search, tensors), None), next(filter(_is_embedding, tensors), None))
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"{folder}: no tokenizer (no tokenizer.json); copy the model's tokenizer files there")
    if not grown:
        _check_rows(folder, tensors)


def _check_rows(folder: Path, tensors: Mapping[str, Header]) -> None:
    rows = embedding_rows(tensors)
    beyond = [token for token, number in _plain_tokens(folder).items() if number >= rows] if rows else []
    if beyond:
        raise UserError(
            f"{folder}: the tokenizer knows {len(beyond)} tokens that the embedding has no row for (it has {rows:,}; the first: {beyond[0]!a}); "
            "set model.resize_embeddings=true to give them rows, or take them out of the tokenizer"
        )


def embedding_rows(tensors: Mapping[str, Header]) -> int | None:
    """Rows of the token embedding; None where none is called so."""
    return max((header.shape[0] for name, header in tensors.items() if _is_embedding(name) and len(header.shape) == 2), default=None)


def _is_embedding(name: str) -> bool:
    return bool(_EMBEDDING.search(name)) and not _OTHER_SENSES.search(name)


def _plain_tokens(folder: Path) -> dict[str, int]:
    """Every token but special ones, which may stand beyond the embedding as long as nothing uses them (a pad token)."""
    try:
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = values["model"]["vocab"]
        numbers = vocab if isinstance(vocab, dict) else {str(entry[0]): number for number, entry in enumerate(vocab)}
        added = {token["content"]: (token["id"], bool(token["special"])) for token in values.get("added_tokens") or []}
        special = {content for content, (_, is_special) in added.items() if is_special}
        return {token: number for token, number in chain(numbers.items(), ((c, n) for c, (n, _) in added.items())) if token not in special}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}  # no tokenizer.json, or a broken one: loading it says so


def check_tokens(used: int, rows: int | None, folder: str) -> None:
    """UserError where the records, or what begins and ends an item, use a token that the embedding has no row for."""
    if rows is not None and used >= rows:
        raise UserError(
            f"{folder}: the records use token {used}, and the embedding has {rows:,} rows; set model.resize_embeddings=true to give every token "
            "of the tokenizer a row"
        )


def check_network(folder: Path, tensors: Mapping[str, Header]) -> None:
    """UserError where network and files do not match: by transformers' own names, conversions and exceptions."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its own table of what does not match
    logging.disable_progress_bar()
    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )  # fmt: skip
    except Exception as error:  # whatever transformers makes of a config, the remedy is the user's
        text = str(error).strip().splitlines()
        raise UserError(
            f"{folder}: transformers makes no causal language model of it: {text[0][:200] if text else type(error).__name__}"
        ) from None
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder}: the weights lack {len(missing)} of the model's parameters, {missing[0]} first; is it the same architecture?"
        )
    if mismatched := sorted(found["mismatched_keys"]):
        name, theirs, ours = mismatched[0]
        raise UserError(f"{folder}: {name} is {list(theirs)} in the files and {list(ours)} by config.json; they do not belong together")
    if homeless := _homeless(found["unexpected_keys"], network.config):
        raise UserError(
            f"{folder}: {len(homeless)} tensors have no place in the network, {homeless[0]} first: what they say would be lost; "
            "config.json and weights do not belong together, or transformers knows this model otherwise"
        )
    _check_ties(folder, tensors, network)


def _homeless(unexpected: Sequence[str], config: Any) -> list[str]:
    """Towers of other senses are not trained where text alone is."""
    several = (
        any(hasattr(config, key) for key in ("vision_config", "audio_config", "text_config")) or config.get_text_config() is not config
    )
    return sorted(name for name in unexpected if not (several and _OTHER_SENSES.search(name)))


def _check_ties(folder: Path, tensors: Mapping[str, Header], network: Any) -> None:
    for target, source in (getattr(network, "all_tied_weights_keys", None) or {}).items():
        _check_tie(folder, tensors, _stored(target, tensors), _stored(source, tensors))


def _check_tie(folder: Path, tensors: Mapping[str, Header], target: str | None, source: str | None) -> None:
    """A tensor that the config calls another one, and that is not: loading would keep one of the two."""
    if target and source and not _alike(target, source, tensors):
        raise UserError(
            f"{folder}: config.json ties {target} to {source}, and the files hold two different ones; set tie_word_embeddings to false "
            "there if both are meant"
        )


def _stored(name: str, tensors: Mapping[str, Header]) -> str | None:
    return next((stored for stored in tensors if stored == name or name.endswith(f".{stored}") or stored.endswith(f".{name}")), None)


def _alike(one: str, other: str, tensors: Mapping[str, Header]) -> bool:
    """Shapes, and some evenly spread rows as they lie in the files: another output layer differs in all of them."""
    left, right = tensors[one], tensors[other]
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    rows = left.shape[0]
    chosen = sorted({row * (rows - 1) // (_COMPARED_ROWS - 1) for row in range(_COMPARED_ROWS)})
    return _rows_of(one, left, chosen) == _rows_of(other, right, chosen)


def _rows_of(name: str, header: Header, chosen: list[int]) -> list[bytes]:
    with header.file.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(size))[name]["data_offsets"]
        row_bytes = (end - start) // header.shape[0]

        def row(number: int) -> bytes:
            file.seek(8 + size + start + number * row_bytes)
            return file.read(row_bytes)

        return [row(number) for number in chosen]
