"""Attention on a flat row that never lets one item see another, and the check that this is so.

Linear layers see the flat row; attention is told the items' boundaries. `by_item`: torch's causal kernel on one item after the other, on CPUs (trainer/kernels/by_item.py).
`varlen`: torch's own kernel for flat rows, on GPUs in half precision (trainer/kernels/varlen.py); flash-attn replaces it where it is installed. `padded_sdpa`: attention is unfolded
to (items, heads, length, head size), by buckets of similar length: where a GPU computes in fp32 and one launch an item would be too many. A (T, T) mask would cost T² for
a row of many short items. cuDNN's attention is never asked (`no_cudnn`): it builds a plan for every shape, and rows have new ones at every step.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from console import UserError
from trainer.kernels.by_item import by_item
from trainer.kernels.on_device import on_device
from trainer.kernels.varlen import VARLEN

# Plain softmax attention, causal or in a sliding window; other families (soft caps, sinks, latent keys) keep transformers' own.
_PLAIN_FAMILIES = {"llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "gemma3_text"}
_DROPPED = {"sliding_window": "sliding window", "softcap": "soft cap", "s_aux": "attention sinks", "position_bias": "bias by position"}
"""What transformers hands to attention and ours do not know, those aside that take it by name."""
_WHY = {
    "by_item": "one item after the other: faster than padded buckets for the film, bioS and mixed rows of docs/performance.md",
    "varlen": "torch's kernel for flat rows",
    "flash_attention_2": "flash-attn's kernel for flat rows",
    "padded_sdpa": "padded buckets: fewer launches than one an item, where no kernel for flat rows can run",
    "sdpa": "transformers' own, with a mask over the row",
    "eager": "transformers' own, with all products in memory",
}


def choose_attention(
    wanted: str, model_type: str, plain: bool, flash: bool, device: torch.device, precision: str, windows: bool = False, drops: bool = False
) -> str:
    """Name of the attention implementation for transformers; `auto` resolved.

    `plain`: the model has no chunks or soft cap; `windows`: some layers see a sliding window; `drops`: its attention has dropout; `flash`: flash-attn computes what the model
    means. UserError where the one asked for by name cannot run here.
    """
    if wanted != "auto":
        if reason := _cannot_run(wanted, device, precision):
            raise UserError(f"trainer.attention: {wanted} {reason}; use auto")
        return wanted
    if flash and not _cannot_run("flash_attention_2", device, precision):
        return "flash_attention_2"
    if model_type not in _PLAIN_FAMILIES or not plain:
        return "sdpa"
    if device.type != "cuda":
        return "by_item"
    if not _cannot_run("varlen", device, precision) and not varlen_leaves_out(windows) and not drops:
        return "varlen"
    return "sdpa" if windows else "padded_sdpa"


def attention_in_words(name: str) -> str:
    """For the log, one line."""
    return f"attention: {name}, {_WHY[name]}"


def varlen_leaves_out(windows: bool) -> bool:
    """Whether this torch's kernel for flat rows knows no sliding windows, and the model has them."""
    return windows and not (VARLEN and VARLEN.has_windows)


def _cannot_run(wanted: str, device: torch.device, precision: str) -> str:
    if wanted in ("varlen", "flash_attention_2") and (device.type != "cuda" or precision != "bf16"):
        return f"needs a GPU and trainer.precision bf16 (this is {device.type}, {precision})"
    if wanted == "flash_attention_2" and not importlib.util.find_spec("flash_attn"):
        return "needs the package flash-attn, which cannot be imported"
    if wanted == "varlen" and not VARLEN:
        return f"needs torch.nn.attention.varlen, which torch {torch.__version__} has not"
    return ""


def no_cudnn() -> None:
    """For this process. Where torch picks an attention kernel itself it is not cuDNN's."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def _refuse_dropped(given: dict[str, Any]) -> None:
    """The second line of defence behind trainer/network/families.py: nothing that the model hands to its attention is left out without a word."""
    if dropped := [what for name, what in _DROPPED.items() if given.get(name) is not None]:
        raise UserError(f"trainer.attention: this one leaves out the model's {' and '.join(dropped)}; use auto, sdpa or eager")


def attention_inputs(
    implementation: str, cu_seqlens: np.ndarray[Any, Any], device: torch.device, longest: int | None = None
) -> dict[str, Any]:
    """What the model's forward must be given so that attention knows the items of a row.

    `longest`: a bound of all rows' items, so that kernels are asked alike for each; None: this row's.
    """
    if implementation == "by_item":
        return {"row_boundaries": torch.from_numpy(cu_seqlens.astype(np.int32))}
    lengths = np.diff(cu_seqlens)
    if implementation == "padded_sdpa":
        return {"row_buckets": _buckets(cu_seqlens, lengths, device)}
    longest = longest or int(lengths.max())
    if implementation == "flash_attention_2":
        boundaries = on_device(cu_seqlens.astype(np.int32), device)
        return {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest}
    if implementation == "varlen":
        return {"row_boundaries": on_device(cu_seqlens.astype(np.int32), device), "row_longest": longest}
    return {}  # sdpa and eager find the items in position_ids, at batch size 1


def _buckets(cu_seqlens: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per bucket: the row's token at each place (items, L), padded with the item's last one; the places (n,) of real tokens in it, laid flat;
    those tokens (n,). All made on this side: a mask of real tokens would have the device count them, and wait, in every layer."""
    cu_seqlens, lengths = cu_seqlens[:-1][lengths > 0], lengths[lengths > 0]  # static rows end in repeats of their length
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
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, row_buckets: list[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    out = torch.empty_like(query.transpose(0, 1))  # (T, heads, head size)
    for index, real, tokens in row_buckets:
        q, k, v = (x.transpose(0, 1)[index].transpose(1, 2) for x in (query, key, value))  # (items, heads, L, head size)
        # Padding stands behind the real tokens: the causal mask alone keeps them from seeing it.
        result = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
        out = out.index_copy(0, tokens, result.transpose(1, 2).flatten(0, 1)[real])
    return out


def _by_item(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    row_boundaries: Tensor,
    sliding_window: int | None = None,
) -> Tensor:
    return by_item(query, key, value, row_boundaries, scaling, sliding_window, dropout)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float,
    row_boundaries: Tensor, row_longest: int, sliding_window: int | None = None,
) -> Tensor:  # fmt: skip
    assert not dropout, "refused, or another attention chosen, in trainer/network/families.py"
    assert VARLEN, "refused where torch has none"
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))  # (T, heads, head size)
    return VARLEN(q, k, v, row_boundaries, row_longest, scaling, sliding_window)


def _as_called(kernel: Callable[..., Tensor], *known: str) -> Callable[..., tuple[Tensor, None]]:
    """`kernel` as transformers calls attention: of one flat row, queries (heads, T, head size), keys and values (key heads, T, head size) → (T, heads, head size).

    `known`: what it takes by name of attention_inputs and of the model.
    """

    def attention(
        module: torch.nn.Module,
        query: Tensor,  # (1, heads, T, head size)
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **given: Any,
    ) -> tuple[Tensor, None]:
        assert query.shape[0] == 1, "one flat row at a time, with its items' places"
        row = {name: given.pop(name) for name in known if name in given}
        _refuse_dropped(given)
        return kernel(query[0], key[0], value[0], scaling, dropout, **row)[None], None

    return attention


# Without a mask function of the same name: where transformers has one it looks for packed items first, and waits for the device at every forward pass (tests/numerics/test_waits.py).
AttentionInterface.register("padded_sdpa", _as_called(_padded_sdpa, "row_buckets"))
AttentionInterface.register("by_item", _as_called(_by_item, "row_boundaries", "sliding_window"))
AttentionInterface.register("varlen", _as_called(_varlen, "row_boundaries", "row_longest", "sliding_window"))


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
