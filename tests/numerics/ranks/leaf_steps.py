"""Gradients of one backward pass under ZeRO-3, layers as leaves: whole model, frozen embedding, checkpointing. Run by test_leaves.py in a group of one."""

import json
from pathlib import Path
from typing import Any

import torch

from data.rows.flat_rows import step_rows
from tests.numerics.ranks import steps
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss

CASES = {"whole": {}, "frozen": {"frozen": True}, "checkpointing": {"checkpointing": True}, "planted": {"frozen": True, "planted": True}}


def prepared(frozen: bool = False, checkpointing: bool = False, planted: bool = False) -> Any:
    model: Any = steps.made_model()
    if frozen:
        model.get_input_embeddings().requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if planted:  # as if nothing made the first layer's input need a gradient
        model.enable_input_require_grads = lambda: None
    return model.train()


def row() -> Any:
    return step_rows(steps.made_plan(), steps.made_store(), 0, 0, 1, steps.CAPACITY, "example")[0]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    engine = PlainEngine(model, (0.9, 0.95), 0.0, 0.0)
    row_loss(engine, row(), "by_item").backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def main(out: Path, world_size: int, rank: int) -> None:
    from deepspeed.utils import safe_get_full_grad

    from trainer.step.engine import DeepSpeedEngine

    told = {}
    for name, settings in CASES.items():
        plain = gradients(prepared(**{**settings, "planted": False}))
        engine = DeepSpeedEngine(prepared(**settings), steps.CONFIG.model_copy(update={"zero_stage": 3}), "fp32", torch.device("cpu"))
        try:
            engine.backward(row_loss(engine, row(), "by_item"))
            found = {key: safe_get_full_grad(p) for key, p in engine.module.named_parameters() if p.requires_grad}
            told[name] = (
                [key for key, grad in found.items() if not torch.equal(grad, plain[key])] if found.keys() == plain.keys() else ["?"]
            )
        except AssertionError as error:
            told[name] = [str(error)]
        if name != "planted":
            engine.close()
    (out / "told.json").write_text(json.dumps(told))
