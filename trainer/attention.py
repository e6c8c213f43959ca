"""Attention on a flat row that never lets one item see another, and the check that this is so.

`padded_sdpa`: linear layers see the flat row; only attention is unfolded to (items, heads, length, head size), by buckets of
similar length, and runs torch's causal kernel. A (T, T) mask would cost T² for a row of many short items; padding at most doubles
an item's length. Works on any device; flash-attn replaces it where it is installed. `varlen`: torch's own kernel for flat rows (CUDA, half
precision), when asked for by name: it has not been measured yet.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from console import UserError
from trainer.placing import on_device

# Plain softmax attention with nothing but a causal mask; other families (soft caps, sinks, sliding windows) keep transformers' own.
_PLAIN_FAMILIES = {"llama", "qwen2", "qwen3", "mistral"}
_DROPPED = {"sliding_window": "sliding window", "softcap": "soft cap", "s_aux": "attention sinks", "position_bias": "bias by position"}
"""What transformers hands to attention and the two below do not know."""


def choose_attention(wanted: str, model_type: str, plain: bool, flash: bool, device: torch.device, precision: str) -> str:
    """Name of the attention implementation for transformers; `auto` resolved.

    `plain`: the model has no windows, chunks or soft cap; `flash`: flash-attn computes what the model means. UserError where the one asked for by name cannot run here.
    """
    if wanted != "auto":
        if reason := _cannot_run(wanted, device, precision):
            raise UserError(f"trainer.attention: {wanted} {reason}; use auto")
        return wanted
    if flash and device.type == "cuda" and precision == "bf16" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    return "padded_sdpa" if model_type in _PLAIN_FAMILIES and plain else "sdpa"


def _cannot_run(wanted: str, device: torch.device, precision: str) -> str:
    if wanted in ("varlen", "flash_attention_2") and (device.type != "cuda" or precision != "bf16"):
        return f"needs a GPU and trainer.precision bf16 (this is {device.type}, {precision})"
    if wanted == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        return "needs the package flash-attn, which cannot be imported"
    if wanted == "varlen" and not importlib.util.find_spec("torch.nn.attention.varlen"):
        return f"needs torch.nn.attention.varlen, which torch {torch.__version__} has not"
    return ""


def _refuse_dropped(given: dict[str, Any]) -> None:
    """The second line of defence behind trainer/families.py: nothing that the model hands to its attention is left out without a word."""
    if dropped := [what for name, what in _DROPPED.items() if given.get(name) is not None]:
        raise UserError(f"trainer.attention: this one leaves out the model's {' and '.join(dropped)}; use auto, sdpa or eager")


def attention_inputs(implementation: str, cu_seqlens: np.ndarray[Any, Any], device: torch.device) -> dict[str, Any]:
    """What the model's forward must be given so that attention knows the items of a row."""
    lengths = np.diff(cu_seqlens)
    if implementation == "padded_sdpa":
        return {"row_buckets": _buckets(cu_seqlens, lengths, device)}
    if implementation == "flash_attention_2":
        boundaries = on_device(cu_seqlens.astype(np.int32), device)
        longest = int(lengths.max())
        return {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest}
    if implementation == "varlen":
        return {"row_boundaries": on_device(cu_seqlens.astype(np.int32), device), "row_longest": int(lengths.max())}
    return {}  # sdpa and eager find the items in position_ids, at batch size 1


def _buckets(cu_seqlens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per bucket: the row's token at each place (items, L), padded with the item's last one; the places (n,) of real tokens in it, laid flat;
    those tokens (n,). All made on this side: a mask of real tokens would have the device count them, and wait, in every layer."""
    size = 2 ** np.ceil(np.log2(np.maximum(lengths, 8))).astype(int)
    result = []
    for width in np.unique(size):
        members = np.flatnonzero(size == width)
        longest = int(lengths[members].max())
        within = np.arange(longest)[None, :]
        index = cu_seqlens[members, None].astype(np.int64) + np.minimum(within, lengths[members, None] - 1)
        real = np.flatnonzero(within < lengths[members, None])
        result.append((on_device(index, device), on_device(real, device), on_device(index.reshape(-1)[real], device)))
    return result


def _padded_sdpa(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, T, head size)
    key: Tensor,  # (1, key heads, T, head size)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_buckets: list[tuple[Tensor, Tensor, Tensor]] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    _refuse_dropped(others)
    assert row_buckets is not None and query.shape[0] == 1, "one flat row at a time, with its buckets"
    out = torch.empty_like(query[0].transpose(0, 1))  # (T, heads, head size)
    for index, real, tokens in row_buckets:
        q, k, v = (x[0].transpose(0, 1)[index].transpose(1, 2) for x in (query, key, value))  # (items, heads, L, head size)
        # Padding stands behind the real tokens: the causal mask alone keeps them from seeing it.
        result = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
        out = out.index_copy(0, tokens, result.transpose(1, 2).flatten(0, 1)[real])
    return out[None], None


def _varlen(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, T, head size)
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    row_boundaries: Tensor | None = None,
    row_longest: int = 0,
    **others: Any,
) -> tuple[Tensor, None]:
    _refuse_dropped(others)
    from torch.nn.attention.varlen import varlen_attn

    assert row_boundaries is not None, "the row's item boundaries"
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, head size)
    causal, grouped = (-1, 0), q.shape[1] != k.shape[1]
    out = varlen_attn(
        q, k, v, row_boundaries, row_boundaries, row_longest, row_longest, scale=scaling, window_size=causal, enable_gqa=grouped
    )
    return out[None], None  # type: ignore[index,call-overload]


AttentionInterface.register("padded_sdpa", _padded_sdpa)
AttentionMaskInterface.register("padded_sdpa", lambda *_, **__: None)
AttentionInterface.register("varlen", _varlen)
AttentionMaskInterface.register("varlen", lambda *_, **__: None)


def leak(logits_of: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], Tensor], vocab_size: int) -> float:
    """Largest change of item B's logits when item A before it, in the same row, changes, as a share of the largest of them.

    0 up to rounding means isolated.

    `logits_of(input_ids (T,), cu_seqlens)` → (T, V).
    """
    rng = np.random.default_rng(0)
    a, other, b = (rng.integers(0, vocab_size, n) for n in (11, 11, 9))
    boundaries = np.array([0, 11, 20], dtype=np.int32)
    first, second = (logits_of(np.concatenate([x, b]), boundaries)[11:].float() for x in (a, other))
    return float((first - second).abs().max() / first.abs().max())
