"""Tiny models for sums of weights: the same on every machine, for numpy's generators are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from data.wording.tiny_tokenizer import make_tokenizer
from tests.helpers.networks import sizes

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Where was Anna Berg born? She was born in Oslo."]
NEW = ("<|user|>", "<|end|>")


@dataclass(frozen=True)
class Trio:
    base: Path
    instruct: Path
    descendant: Path


def write_tokenizer(folder: Path, added: tuple[str, ...] = (), shift: bool = False, template: str | None = None) -> int:
    """A tokenizer in `folder`; returns its size. `shift`: the first added token stands in the middle, and what follows has moved by one."""
    tokenizer = make_tokenizer(TEXTS, 400)
    tokenizer.add_tokens(list(added[shift:]), special_tokens=True)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if shift:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text())
        vocabulary = values["model"]["vocab"]
        values["model"]["vocab"] = {token: n + (n >= 100) for token, n in vocabulary.items()} | {added[0]: 100}
        for token in values["added_tokens"]:
            token["id"] += token["id"] >= 100
        values["added_tokens"].append({**values["added_tokens"][0], "id": 100, "content": added[0]})
        values["added_tokens"].sort(key=lambda token: token["id"])
        path.write_text(json.dumps(values))
        return len(tokenizer) + 1
    return len(tokenizer)


def write_model(
    folder: Path, seed: int, near: Path | None = None, tied: bool = False, padding: int = 0, added: tuple[str, ...] = (), shift: bool = False,
    dtype: torch.dtype = torch.bfloat16, template: str | None = None, settings: dict[str, Any] | None = None, large: bool = False,
) -> Path:  # fmt: skip
    """A random Llama; `near`: a little away from that model, where their shapes agree, as a training leaves it.

    `large`: with torch's generator, which is fast, and whose numbers another version may change.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    folder.mkdir(parents=True)
    rows = write_tokenizer(folder, added, shift, template) + padding
    shape = sizes(32, 64, layers=2, heads=2, key_heads=1)
    roles = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=rows,
        **shape | (settings or {}),
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        **roles,
    )
    config.save_pretrained(folder)
    GenerationConfig(**{**roles, "eos_token_id": [2, rows - padding - 1] if added else 2}).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    from trainer.store.weights import FolderWeights

    start = FolderWeights(near) if near else None
    random = np.random.default_rng(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        shape_of, spread = tuple(parameter.shape), 0.003 if near else 0.03
        values = torch.randn(shape_of) * spread if large else torch.from_numpy(random.normal(0, spread, shape_of)).float()
        if start and name in start.names():
            theirs = start.read(name).float()
            values[: theirs.shape[0]] += theirs[: values.shape[0]]
        weights[name] = (values + (name.endswith("norm.weight") and not near)).to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
CASES: dict[str, dict[str, dict[str, Any]]] = {
    # tied embeddings, two padded rows
    "tied": {"base": {"tied": True, "padding": 2}, "instruct": {}, "descendant": {}},
    "untied": {"base": {}, "instruct": {}, "descendant": {}},
    # resized embeddings
    "tied_instruct_grown": {"base": {"tied": True}, "instruct": {"added": NEW, "template": TEMPLATE}, "descendant": {}},
    "instruct_grown_in_the_middle": {"base": {}, "instruct": {"added": NEW, "shift": True}, "descendant": {}},
    "descendant_grown": {"base": {}, "instruct": {}, "descendant": {"added": NEW}},
}


def write_trio(folder: Path, case: str, dtype: torch.dtype = torch.bfloat16) -> Trio:
    told = CASES[case]
    base = write_model(folder / "base", 1, dtype=dtype, **told["base"])
    others = [
        write_model(folder / role, seed, base, dtype=dtype, **{**told["base"], **told[role]})
        for seed, role in ((2, "instruct"), (3, "descendant"))
    ]
    return Trio(base, *others)


def mergekit_config(trio: Trio, case: str, out_dtype: str = "bfloat16") -> dict[str, Any]:
    """task_arithmetic as arXiv 2410.10739 has it: weights 1, fp32; vocabularies that differ are matched by token."""
    models = [{"model": str(model), "parameters": {"weight": 1.0}} for model in (trio.descendant, trio.instruct)]
    config: dict[str, Any] = {
        "merge_method": "task_arithmetic", "base_model": str(trio.base), "models": models, "dtype": "float32", "out_dtype": out_dtype,
    }  # fmt: skip
    if "grown" in case:
        config["tokenizer"] = {"source": str(trio.descendant if case == "descendant_grown" else trio.instruct)}
    return config
