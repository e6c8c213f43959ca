"""A row padded to a static shape is the row: loss and gradients, for every kind of family, and the same steps under another world size."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.curriculum.plan import Plan
from data.rows.flat_rows import Row, step_rows
from data.rows.static_rows import Shapes
from data.rows.token_store import TokenStore
from tests.models.families import make_model
from trainer.network.families import attention_for
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss

SHAPES = Shapes((128, 192), 7, 45)
FAMILIES = {
    "llama3": False,
    "qwen3": False,
    "qwen2.5-tied": False,
    "mistral": False,
    "gemma3": False,
    "gemma2": False,
    "mixtral": False,
    "mamba": True,
    "bamba": True,
    "falcon-h1": True,
}
"""Whether rows hold one item each: states of Mamba go from item to item."""


def made_row(one_item: bool) -> Row:
    """Items of 45 (beyond the families' windows), 20 and 30 tokens, or one of 45."""
    lengths = np.array([45] if one_item else [45, 20, 30])
    tokens = np.random.default_rng(1).integers(3, 96, lengths.sum()).astype(np.uint32)
    store = TokenStore(tokens, np.concatenate([[0], np.cumsum(lengths)]), np.full(len(lengths), 3, np.int32), "")
    return step_rows(Plan(np.arange(len(lengths)), np.array([0, len(lengths)]), ""), store, 0, 0, 1, 128, "example")[0]


def loss_and_gradients(family: str, row: Row) -> list[Tensor]:
    model: Any = make_model(family, 96)
    attention = attention_for(model.config, "auto", torch.device("cpu"), "fp32")
    model.set_attn_implementation(attention)
    loss = row_loss(PlainEngine(model, (0.9, 0.95), 0.1, 0.0), row, attention)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_is_unpadded(family: str) -> None:
    """Pads add zeros to sums and change where matrix products are cut: fp32's 2⁻²⁴ times the some hundred sums between a token and its loss is 1e-5."""
    row = made_row(FAMILIES[family])
    static = SHAPES.pad(row)
    exact, padded = loss_and_gradients(family, row), loss_and_gradients(family, static)
    assert len(static["input_ids"]) == 128 and len(exact) == len(padded)
    for a, b in zip(padded, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    weighted = {**static, "loss_weight": np.where(np.arange(128) == 127, 0.01, static["loss_weight"]).astype(np.float32)}
    assert abs(float(loss_and_gradients(family, weighted)[0] - exact[0])) > 1e-3  # the twin: one pad carries a hundredth


def test_pads_behind_a_wrong_boundary_would_show() -> None:
    """The twin: boundaries that forget an item."""
    row = made_row(False)
    wrong = {**SHAPES.pad(row), "boundaries": np.array([0, 65, 95, 128, 128, 128, 128, 128], dtype=np.int32)}
    assert abs(float(loss_and_gradients("llama3", wrong)[0] - loss_and_gradients("llama3", row)[0])) > 1e-4
