"""The text model inside a folder of a multimodal one (Gemma 3 of 4B, Qwen 3.5, Llama 4, Mistral 3): a folder of its own that is trained,
exported and examined as any other.

Why not the whole: the towers for images and sound would be neither used nor changed, and would cost memory in every stage, on every GPU. The
tensors are copied as they are, a MiB at a time, once a run; it costs the text model's size on disk.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from console import UserError, say
from data.ground.contents import MEMORY, names_and_contents, weight_files
from trainer.merging.residual.describe import copy_description, description_files
from trainer.merging.residual.models import LazyWeights, chunks, fingerprint
from trainer.network.buffers import names_in_files
from trainer.network.families import build_network, check_buffers
from trainer.network.text_config import read_config
from trainer.store.shard_writer import DTYPES, TensorSpec, write_sharded

TEXT_MODELS = "text-models"
"""Of a run folder."""
_FORMAT = 1
"""Bump by hand when the same folder would give another text model."""
_INNER = re.compile(r"(^|\.)(?:language_model|text_model)\.")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json")
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def text_folder(folder: Path, beside: Path) -> Path:
    """`folder` itself where it holds a text model; else its text model, written once below `beside`. UserError as check_text_model."""
    config = read_config(folder)
    if _is_text(config):
        check_text_model(folder)
        return folder
    key = fingerprint([_FORMAT, names_and_contents(_described(folder), beside.parent / MEMORY)])[:16]
    target = beside / key
    if not target.is_dir():
        draft = beside / f".{key}.{os.getpid()}"
        try:
            _write(folder, _parts(folder, config), draft)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    text = config.get_text_config().model_type
    say(f"{folder}: {config.model_type} with more than text: its text model ({text}) is trained, and hf/ will hold that alone ({target})")
    return target.resolve()


def _described(folder: Path) -> list[Path]:
    """Weights, and what is copied beside them."""
    return sorted({*weight_files(folder), *description_files(folder)})


def check_text_model(folder: Path) -> None:
    """UserError where transformers knows no causal language model of that kind, or the files lack a part of it. Reads headers and buffers alone."""
    config = read_config(folder)
    if not _is_text(config):
        _parts(folder, config)
        return
    if towers := [part for part in config.sub_configs if "vision" in part or "audio" in part]:
        raise UserError(f"{folder}: model_type {config.model_type} has a {towers[0]} and no text model of its own: not supported")
    check_buffers(folder)


def _is_text(config: Any) -> bool:
    return config.get_text_config() is config


@dataclass(frozen=True)
class _Parts:
    config: Any
    """The text model's."""
    weights: LazyWeights
    """Of the whole."""
    names: dict[str, str]
    """The text model's name for a tensor → the whole's."""
    specs: list[TensorSpec]


def _parts(folder: Path, config: Any) -> _Parts:
    """UserError where the text model cannot be taken out of the whole."""
    if getattr(config.get_text_config(), "cross_attention_layers", None):
        raise UserError(f"{folder}: model_type {config.model_type} has layers in its text model that only images reach: not supported")
    weights = LazyWeights(folder)
    text = _text_config(folder, config, any(name.endswith("lm_head.weight") for name in weights.names()))
    network = build_network(text, f"{folder}: the text model ({text.model_type}) of {config.model_type}")
    inner = {_INNER.sub(r"\1", name, count=1): name for name in weights.names()}
    wanted = network.state_dict()
    places = names_in_files(network, wanted, list(inner))
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)} - dict(network.named_parameters()).keys()
    if missing := sorted(wanted.keys() - places.keys() - tied):
        raise UserError(
            f"{folder}: its files lack {len(missing)} tensors of the text model ({text.model_type}) in {config.model_type}, {missing[0]} "
            "first: it cannot be taken out; not supported"
        )
    taken = {name: stored for name, stored in inner.items() if names_in_files(network, wanted, [name])}
    specs = [TensorSpec(name, weights.dtype(stored), tuple(weights.shape(stored))) for name, stored in sorted(taken.items())]
    if quantised := [spec for spec in specs if spec.dtype not in DTYPES]:
        raise UserError(f"{folder}: {quantised[0].name} is quantised ({quantised[0].dtype}); give the model in bf16")
    text.architectures = [type(network).__name__]
    return _Parts(text, weights, taken, specs)


def _write(folder: Path, parts: _Parts, draft: Path) -> None:
    def pieces(spec: TensorSpec) -> Iterator[Tensor]:
        yield from (parts.weights.chunk(parts.names[spec.name], start, end) for start, end in chunks(spec.shape))

    write_sharded(draft, parts.specs, pieces)
    copy_description(folder, draft, without=("config.json", *_PROCESSORS))
    parts.config.save_pretrained(draft)


def _text_config(folder: Path, config: Any, has_head: bool) -> Any:
    """The inner config, with what composite ones say outside of it: roles of tokens, dtype, quantisation, and whether the head is tied."""
    text, said = config.get_text_config(), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = said.get("text_config") or {}
    for role in _ROLES:
        if said.get(role) is not None and own.get(role) is None:
            setattr(text, role, said[role])
    text.dtype = getattr(text, "dtype", None) or config.dtype
    if quantised := getattr(config, "quantization_config", None):
        text.quantization_config = quantised
    text.tie_word_embeddings = not has_head or bool(getattr(config, "tie_word_embeddings", True) and text.tie_word_embeddings)
    return text
