"""The one call of torch's attention for flat rows, against the signatures of three releases; and which attention each device gets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.kernels import varlen
from trainer.kernels.attention import choose_attention
from trainer.kernels.by_item import by_item
from trainer.kernels.varlen import VARLEN, Varlen

LENGTHS, HEADS, KEY_HEADS, SIZE = (5, 1, 17, 9), 4, 2, 8
Kernel = Callable[..., Tensor]


def reference(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, scale: float | None, left: int) -> Tensor:
    """What the kernels compute, by torch's plain attention and a mask; `left`: tokens seen before one, -1: all."""
    out = []
    for start, end in zip(boundaries.tolist(), boundaries.tolist()[1:], strict=False):
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        mask = (behind >= 0) & ((behind <= left) | (left < 0))
        item = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        out.append(scaled_dot_product_attention(*item, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)


# As they stand in torch/nn/attention/varlen.py of v2.10, v2.11 and v2.12 (2.13's is 2.12's with more behind it).
def torch_2_10(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, is_causal: bool = False, return_aux: Any = None) -> Tensor:  # fmt: skip
    assert is_causal
    return reference(query, key, value, cu_seq_q, None, -1)


def torch_2_11(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)) -> Tensor:  # fmt: skip
    assert window_size[1] == 0
    return reference(query, key, value, cu_seq_q, scale, window_size[0])


def torch_2_12(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False) -> Tensor:  # fmt: skip
    assert window_size[1] == 0 and enable_gqa == (query.shape[1] != key.shape[1])
    return reference(query, key, value, cu_seq_q, scale, window_size[0])


def made(key_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(sum(LENGTHS), heads, SIZE, generator=generator) for heads in (HEADS, key_heads, key_heads))
    return q, k, v, torch.tensor((0, *LENGTHS)).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("kernel", [torch_2_10, torch_2_11, torch_2_12])
@pytest.mark.parametrize(("scale", "window", "key_heads"), [(None, None, KEY_HEADS), (0.3, None, HEADS), (0.3, 4, KEY_HEADS)])
def test_every_release_is_asked_for_the_same(kernel: Kernel, scale: float | None, window: int | None, key_heads: int) -> None:
    q, k, v, boundaries = made(key_heads)
    asked = Varlen(kernel)
    if window and not asked.has_windows:
        with pytest.raises(AssertionError, match="refused"):
            asked(q, k, v, boundaries, 17, scale, window)
        return
    got = asked(q, k, v, boundaries, 17, scale, window)
    on_cpu = by_item(*(x.transpose(0, 1) for x in (q, k, v)), boundaries, scale, window)
    # 17 products of size 1 in fp32: their sum is off by 17 · 2⁻²⁴ of it at most, whatever the order
    torch.testing.assert_close(got, reference(q, k, v, boundaries, scale, -1 if window is None else window - 1), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(got, on_cpu, rtol=1e-5, atol=2e-6)
    wrong = reference(q, k, v, boundaries, scale, 4)  # the twin: a window of one more
    assert (got - wrong).abs().max() > 1e-2


def test_this_torch_is_known() -> None:
    assert VARLEN is not None and VARLEN.has_windows


def test_which_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def chosen(device: torch.device, precision: str, windows: bool = False, family: str = "llama", plain: bool = True) -> str:
        return choose_attention("auto", family, plain, True, device, precision, windows)

    monkeypatch.setattr("trainer.kernels.attention.importlib.util.find_spec", lambda name: None)  # no flash-attn
    assert [chosen(cpu, "fp32"), chosen(cpu, "bf16", True), chosen(cuda, "bf16"), chosen(cuda, "bf16", True)] == ["by_item"] * 2 + [
        "varlen"
    ] * 2
    assert [chosen(cuda, "fp32"), chosen(cuda, "fp32", True)] == ["padded_sdpa", "sdpa"]
    assert [chosen(cuda, "bf16", family="gemma2"), chosen(cpu, "fp32", plain=False)] == ["sdpa"] * 2
    monkeypatch.setattr("trainer.kernels.attention.VARLEN", Varlen(torch_2_10))
    assert [chosen(cuda, "bf16"), chosen(cuda, "bf16", True)] == ["varlen", "sdpa"]
    monkeypatch.setattr("trainer.kernels.attention.VARLEN", None)
    assert [chosen(cuda, "bf16"), chosen(cuda, "bf16", True)] == ["padded_sdpa", "sdpa"]
    monkeypatch.undo()
    assert varlen.VARLEN is VARLEN
