"""Cells that are spoilt on purpose, each in one way that the matrix must find: run by test_parity.py in a group of one process."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from tests.parity import models, oracle
from tests.parity.cells import Cell
from tests.parity.product import Fault, outcome
from trainer.step.set_up import StageEngine

Folder = Callable[[Path], Path]


def round_buffer(made: StageEngine) -> None:
    for name, buffer in made.engine.module.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.bfloat16())


def lose_gradient(made: StageEngine) -> None:
    """Of the norm before the last layer: a fiftieth of the whole gradient, 64 of its values."""
    made.engine.module.get_parameter("model.layers.1.input_layernorm.weight").register_hook(torch.zeros_like)


def without_window(out: Path) -> Path:
    """The same weights; only the window is gone, as where attention leaves it out."""
    return models.save("mistral", out / "mistral-without-window", sliding_window=None)


def another_stage(out: Path) -> Path:
    """The weights that the stage ends with, in the place of those that it starts from."""
    model = models.plain(out / "llama")
    stepped = torch.load(oracle.path_of(out / "llama", "all", "short"))["stepped"]
    for name, parameter in model.named_parameters():
        parameter.data.copy_(stepped[name])
    model.save_pretrained(out / "llama-another-stage")
    return out / "llama-another-stage"


TWINS: dict[str, tuple[Cell, Fault | None, Folder | None, str]] = {
    "rounded buffer": (Cell("llama", "all", "short", 2, "bf16", 1), round_buffer, None, "buffer: model.rotary_emb.inv_freq"),
    "missing gradient": (
        Cell("llama", "all", "short", 2, "bf16", 1),
        lose_gradient,
        None,
        "parameter of model.layers.1.input_layernorm.weight",
    ),
    "missing gradient in fp32": (Cell("llama", "all", "short", 1, "fp32", 1), lose_gradient, None, "gradient is off by"),
    "dropped window": (Cell("mistral", "all", "long", 2, "fp32", 1), None, without_window, "loss is off by"),
    "another stage": (Cell("llama", "all", "short", 1, "bf16", 1), None, another_stage, "start: "),
}
"""Name → (cell, what is spoilt, the folder in the place of its own, what the verdict must say)."""


def main(out: Path, world_size: int, rank: int) -> None:
    found = {}
    for name, (cell, fault, folder, _) in TWINS.items():
        verdict = outcome(cell, out, folder(out) if folder else None, fault)
        assert verdict
        found[name] = asdict(verdict)
    (out / "twins.json").write_text(json.dumps(found))
