"""Attention on a flat row, one item after the other by torch's own causal kernel: on CPUs faster than padded buckets whatever the items (docs/performance.md).

For the dispatcher it is one operation that is given the items' boundaries as a tensor, so that a compiled layer is one graph for all rows of a length. On GPUs thousands
of short items would launch too many kernels: varlen is for those.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def by_item(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float | None, window: int | None, dropout: float = 0.0
) -> Tensor:
    """query (heads, T, head size), key and value (key heads, T, head size), boundaries (items + 1,) on the host → (T, heads, head size).

    Causal within each item; `window`: a token sees itself and window − 1 before it; None: all. Boundaries go from 0 to T and may repeat it.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.device.type == "cpu" and not dropout:
        return _attend(query, key, value, boundaries, scale, window or 0)[0]  # type: ignore[no-any-return]
    parts = []
    for start, end in _items(boundaries):
        q, k, v = (x[None, :, start:end] for x in (query, key, value))
        mask = _band(end - start, window, query.dtype).to(query.device) if window and end - start > window else None
        grouped = q.shape[1] != k.shape[1]
        parts.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, dropout_p=dropout, enable_gqa=grouped
            )[0]
        )
    return torch.cat(parts, dim=1).transpose(0, 1)


def _items(boundaries: Tensor) -> list[tuple[int, int]]:
    places = boundaries.tolist()
    return [(start, end) for start, end in pairwise(places) if end > start]


@lru_cache(maxsize=16)
def _band(length: int, window: int, dtype: torch.dtype) -> Tensor:
    """(length, length) to be added to the products of a causal window."""
    places = torch.arange(length)
    behind = places[:, None] - places[None, :]
    return torch.zeros(length, length, dtype=dtype).masked_fill_((behind < 0) | (behind >= window), float("-inf"))


def _mask(length: int, window: int, dtype: torch.dtype) -> dict[str, Any]:
    return {"attn_mask": _band(length, window, dtype)} if window and length > window else {}


@torch.library.custom_op("studyhall::by_item", mutates_args=(), device_types="cpu")
def _attend(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """→ (T, heads, head size) and the logarithms of the softmax's sums (T, heads), which the backward pass needs. `window` 0: none."""
    out, sums = _empty(query)
    for start, end in _items(boundaries):
        mask = _mask(end - start, window, query.dtype)
        q, k, v = (x[None, :, start:end] for x in (query, key, value))
        own, own_sums = _forward(q, k, v, 0.0, not mask, scale=scale, **mask)
        out[start:end], sums[start:end] = own[0].transpose(0, 1), own_sums[0].transpose(0, 1)
    return out, sums


def _empty(query: Tensor) -> tuple[Tensor, Tensor]:
    heads, tokens, size = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(tokens, heads, size), query.new_empty(tokens, heads, dtype=wide)


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    return _empty(query)


@torch.library.custom_op("studyhall::by_item_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, boundaries: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in their shape."""
    of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
    for start, end in _items(boundaries):
        mask = _mask(end - start, window, query.dtype)
        q, k, v = (x[None, :, start:end] for x in (query, key, value))
        o, s, g = (x[start:end].transpose(0, 1)[None] for x in (out, sums, slope))
        own = _backward(g, q, k, v, o, s, 0.0, not mask, scale=scale, **mask)
        for whole, part in zip((of_query, of_key, of_value), own, strict=True):
            whole[:, start:end] = part[0]
    return of_query, of_key, of_value


@_attend_backward.register_fake
def _(
    slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, boundaries: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, boundaries, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output, boundaries)


def _gradients(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, sums, boundaries = ctx.saved_tensors
    return *_attend_backward(slope, query, key, value, out, sums, boundaries, ctx.scale, ctx.window), None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)
