"""Attention item by item: one operation for the dispatcher, the same numbers as a mask over the row, for every family that has it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.models.families import make_model
from trainer.kernels.attention import attention_inputs
from trainer.kernels.by_item import by_item

LENGTHS = (5, 1, 40, 9)  # 40 is longer than the families' windows of 32
FAMILIES = ["llama3", "qwen2.5-tied", "qwen3", "mistral", "mixtral", "qwen3-moe", "gemma3"]


def loss_and_gradients(family: str, attention: str, boundaries: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    model: Any = make_model(family, 96)
    model.set_attn_implementation(attention)
    cu_seqlens = np.concatenate([[0], np.cumsum(boundaries)]).astype(np.int32)
    ids = torch.arange(sum(LENGTHS))[None] * 7 % 96
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    inputs = attention_inputs(attention, cu_seqlens, torch.device("cpu"))
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, **inputs).logits[0]
    loss = (logits.float().log_softmax(-1)[:, 3] * torch.linspace(0.5, 1.5, sum(LENGTHS))).mean()
    loss.backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_familys_attention(family: str) -> None:
    """Windows too. fp32 sums in another order, as between any two kernels."""
    ours, theirs = loss_and_gradients(family, "by_item"), loss_and_gradients(family, "sdpa")
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    other = loss_and_gradients(family, "by_item", (sum(LENGTHS),))  # the twin: items that see each other
    assert float((other[0] - theirs[0]).abs().max()) > 1e-3 * float(theirs[0].abs().max())


def test_the_operation_keeps_torchs_contract() -> None:
    """Fakes, strides and gradients as what is compiled around it assumes; a window and an empty item at the end with it."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(heads, 12, 8, generator=generator, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 7, 12, 12], dtype=torch.int32)
    given = [x.detach() for x in (q, k, v)]
    real = torch.ops.studyhall.by_item(*given, boundaries, 0.3, 3)
    with FakeTensorMode() as mode:
        fakes = torch.ops.studyhall.by_item(*map(mode.from_tensor, (*given, boundaries)), 0.3, 3)
    for one, fake in zip(real, fakes, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (fake.shape, fake.stride(), fake.dtype)
    assert torch.autograd.gradcheck(lambda *x: by_item(*x, boundaries, 0.3, 3), (q, k, v))


def test_drops_take_torchs_own_way() -> None:
    q, k, v = (torch.randn(heads, 12, 8, generator=torch.Generator().manual_seed(1)) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 7, 12])
    whole = by_item(q, k, v, boundaries, None, 3)
    torch.testing.assert_close(by_item(q, k, v, boundaries, None, 3, dropout=1e-9), whole, rtol=1e-5, atol=1e-6)
    assert (by_item(q, k, v, boundaries, None, 3, dropout=0.5) - whole).abs().max() > 0.1
