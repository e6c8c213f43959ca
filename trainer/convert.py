"""python -m trainer model convert FILE.gguf --out DIR: a model of llama.cpp's format as an ordinary model folder.

transformers reads architecture, weights and tokenizer; what it leaves out is added here: whether the tokenizer puts a token before texts, the
token that ends a turn, how digits are split. Nothing of a GGUF file is run.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from console import Command, UserError, say
from data.wording.begins import begin

_ABOUT = """\
Makes an ordinary model folder (safetensors, tokenizer, chat template, generation config, licence) of a GGUF file, for model.name.
What quantisation took from the weights does not come back; the command says how much that was.
"""
_EXAMPLE = "example:\n  python -m trainer model convert SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2\n"
_WHOLE = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Kinds that hold weights as they were trained; F64 does not occur in language models."""
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT_2 = {"gpt-2", "default", "mpt", "phi-2", "olmo", "jais", "gigachat", ""}
_ADDS_BOS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken", "chameleon"}
"""Names of llama.cpp for ways of splitting text: digits one by one before GPT-2's rule; GPT-2's rule; and vocabularies that add bos unless told not to."""
_BLOCK = 32


def model_command(argv: list[str]) -> int:
    parser = Command("python -m trainer model", description="Models as other programs keep them.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help=_ABOUT.splitlines()[0], description=_ABOUT, epilog=_EXAMPLE)
    convert.add_argument("file", metavar="FILE.gguf", type=Path)
    convert.add_argument("--out", metavar="DIR", type=Path, required=True, help="a folder that is not there yet, or empty")
    convert.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights; auto: exact")
    arguments = parser.parse_args(argv)
    convert_gguf(arguments.file, arguments.out, arguments.dtype)
    return 0


def convert_gguf(file: Path, out: Path, dtype: str = "auto") -> None:
    """UserError, naming the reason, for a file that cannot become a causal language model; nothing is left in `out` then."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already; give another folder, or remove it")
    reader = _open(file)
    facts = _facts(reader, file)
    _check_architecture(file, facts)
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    wanted = _exact_dtype(kinds) if dtype == "auto" else getattr(torch, dtype)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        tokenizer = _tokenizer(file, facts, len(reader.fields["tokenizer.ggml.tokens"].data))
        _write_model(file, draft, wanted, facts, len(tokenizer))
        tokenizer.save_pretrained(draft)
        lost = _what_was_lost(reader)
        _write_papers(file, draft, facts, lost)
        if out.exists():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for line in lost:
        say(line)
    say(f"{out}: {facts.get('general.name', file.stem)}, {str(wanted).removeprefix('torch.')}; model.name: {out}")


def _open(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        if magic == b"GGUF":
            return GGUFReader(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:  # cut short, or of another version of the format
        raise UserError(f"{file}: no whole GGUF file ({_reason(error)}); fetch it again") from None
    raise UserError(f"{file}: no GGUF file")


def _facts(reader: Any, file: Path) -> dict[str, Any]:
    """The file's metadata without its vocabulary. UserError where it is no language model of its own."""
    lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
    facts = {name: field.contents() for name, field in reader.fields.items() if name not in lists}
    kind = facts.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{file}: holds no model but {kind!a}; give the model's own file")
    if int(facts.get("split.count", 1)) > 1:
        raise UserError(f"{file}: one of {facts['split.count']} parts; join them first (llama-gguf-split --merge)")
    if not reader.tensors or "tokenizer.ggml.tokens" not in reader.fields:
        raise UserError(f"{file}: holds {'a vocabulary alone' if not reader.tensors else 'no tokenizer'}; give a whole model's file")
    return facts


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _exact_dtype(kinds: Counter[str]) -> torch.dtype:
    """The smallest that holds every weight as the file means it; norms in fp32 beside bf16 matrices hold values of the training's bf16."""
    matrices = {kind for kind in kinds if kind != "F32"}
    return _WHOLE.get(next(iter(matrices)), torch.float32) if len(matrices) == 1 else torch.float32


def _tokenizer(file: Path, facts: dict[str, Any], num_tokens: int) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except Exception as error:  # what the libraries make of a vocabulary that they do not know
        raise UserError(f"{file}: its tokenizer ({facts.get('tokenizer.ggml.model')!a}) cannot be read: {_reason(error)}") from None
    tokenizer = _without_extra_tokens(tokenizer, num_tokens)
    model, split = facts.get("tokenizer.ggml.model"), str(facts.get("tokenizer.ggml.pre", ""))
    if model == "gpt2" and split in _SINGLE_DIGITS:
        by_digit = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_digit)
    elif model == "gpt2" and split not in GGUF_PRE_TOKENIZER_SPLITS and split not in _AS_GPT_2:
        say(
            f"warning: {file.name}: splits text as {split!a}, which transformers does not know: GPT-2's rule is used; compare some token numbers"
        )
    adds = facts.get("tokenizer.ggml.add_bos_token", model == "llama" or split in _ADDS_BOS)
    if tokenizer.bos_token_id is not None:
        begin(tokenizer, "always" if adds else "never")
    return tokenizer


def _without_extra_tokens(tokenizer: Any, num_tokens: int) -> Any:
    """transformers' class for byte-level vocabularies adds its own <|endoftext|> to one that has none (Llama 3): the embedding has no row for it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < num_tokens]
    named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(values)), **named)
    made.chat_template = tokenizer.chat_template
    return made


def _check_architecture(file: Path, facts: dict[str, Any]) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = facts.get("general.architecture")
    try:
        model_type = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).model_type
    except Exception as error:  # transformers raises what it likes for architectures that it lacks
        raise UserError(f"{file}: transformers cannot read a GGUF file of architecture {name!a}: {_reason(error)}") from None
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{file}: architecture {name!a} is no causal language model of transformers")


def _write_model(file: Path, target: Path, dtype: torch.dtype, facts: dict[str, Any], num_tokens: int) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    name = facts.get("general.architecture")
    settings = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": dtype}
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(file.parent, **settings, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # and gguf what it likes for kinds of quantisation
        raise UserError(f"{file}: transformers cannot read its weights (architecture {name!a}): {_reason(error)}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{file}: {len(missing)} tensors of the architecture {name!a} are missing, {missing[0]} among them")
    rows = model.get_input_embeddings().weight.shape[0]
    if num_tokens > rows:
        raise UserError(f"{file}: {num_tokens} tokens, but an embedding of {rows}: they do not belong together")
    _plain(model, facts)
    model.save_pretrained(target)


def _plain(model: Any, facts: dict[str, Any]) -> None:
    """An ordinary model: no quantisation, numbers as they were before they were stored in 32 bits (1e-05, not 9.999999747378752e-06)."""
    for owner in (model, model.config):
        for name in ("hf_quantizer", "quantization_config", "_pre_quantization_dtype"):
            if hasattr(owner, name):
                delattr(owner, name)
    model.is_quantized = False
    for key, value in list(vars(model.config).items()):
        if isinstance(value, float):
            setattr(model.config, key, float(str(np.float32(value))))
    turn = facts.get("tokenizer.ggml.eot_token_id")
    ends = model.generation_config.eos_token_id
    if turn is not None and turn != ends:
        model.generation_config.eos_token_id = [*(ends if isinstance(ends, list) else [] if ends is None else [ends]), int(turn)]
    model.generation_config.do_sample = False


def _what_was_lost(reader: Any) -> list[str]:
    """One line a kind of quantisation: weights, bits, and about how large rounding was beside them."""
    from gguf import dequantize

    by_kind: dict[str, list[Any]] = {}
    for tensor in reader.tensors:
        by_kind.setdefault(tensor.tensor_type.name, []).append(tensor)
    total = sum(int(tensor.n_elements) for tensor in reader.tensors)
    lines = []
    for kind, tensors in by_kind.items():
        if kind in _WHOLE:
            continue
        weights, stored = (sum(int(getattr(tensor, of)) for tensor in tensors) for of in ("n_elements", "n_bytes"))
        samples = [dequantize(np.asarray(tensor.data[:64]), tensor.tensor_type).reshape(-1, _BLOCK) for tensor in tensors]
        error = (
            ""
            if kind.startswith(("IQ", "TQ", "MXFP"))
            else f", rounded by about {100 * _rounding(np.concatenate(samples)):.1f} % of their size"
        )
        lines.append(f"lost: {100 * weights / total:.1f} % of the weights were kept in {8 * stored / weights:.1f} bits ({kind}){error}")
    return lines or ["nothing was lost: no weight was quantised"]


def _rounding(blocks: np.ndarray[Any, Any]) -> float:
    """Rounding to a grid of step s errs by s / √12 (root mean square): estimated from each block's smallest step, beside the weights' own size."""
    ordered = np.sort(blocks, axis=1)
    gaps = np.diff(ordered, axis=1)
    steps = np.where(gaps > 1e-3 * np.abs(ordered).max(axis=1, keepdims=True), gaps, np.inf).min(axis=1)
    steps = steps[np.isfinite(steps)]
    return float(np.sqrt(np.mean(steps**2) / 12 / np.mean(blocks**2))) if len(steps) else 0.0


def _write_papers(file: Path, target: Path, facts: dict[str, Any], lost: list[str]) -> None:
    licence = facts.get("general.license")
    for found in [*file.parent.glob("LICEN[CS]E*"), *file.parent.glob("NOTICE*")]:
        shutil.copyfile(found, target / found.name)
    card = [
        "---",
        *([f"license: {licence}"] if licence else []),
        "library_name: transformers",
        "---",
        f"# {facts.get('general.name', file.stem)}",
        "",
    ]
    whose = f" by {facts['general.organization']}" if "general.organization" in facts else ""
    card += [f"Converted from `{file.name}`{whose}.", "", *(f"- {line}" for line in lost), ""]
    card += [] if licence else ["The file names no licence; the original model's holds.", ""]
    (target / "README.md").write_text("\n".join(card), encoding="utf-8")
