"""Σ weight × nll straight from hidden states: the (targets, V) logits are never there as a whole.

Logits of 4,096 targets over 128,000 tokens take 5 GB with their gradient, and rows may be longer; here a part of the targets at a time is turned
into logits, loss and gradients, in the forward pass. Nothing is computed twice: the gradients wait to be scaled by the one number that
comes back. What waits is the head's gradient, V × d numbers in fp32 where there were several parts, until the backward pass takes it.

torch's own `linear_cross_entropy` and liger's kernel were tried (dev/LOG.md): with a weight per target the former makes all logits twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**28
"""Elements: a GiB in fp32, 2,000 targets over 128,000 tokens. Fewer at once cost time: each part adds a V × d gradient to the sum."""


class GradsInForward(torch.autograd.Function):
    """Of (hidden, weight, bias, what wants no gradient …): the forward pass leaves ctx.grads and ctx.dtypes of the first three."""

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        assert grads is not None, "one backward pass for one forward pass"
        scaled = [None if g is None else g.mul_(outer[0]).to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *scaled, *[None] * (len(ctx.needs_input_grad) - len(scaled))


class _WeightedNll(GradsInForward):
    """(hidden (K, d), weight (V, d), bias (V,) or None, target (K,), share (K,) in fp32) → scalar in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor, at_once: int) -> Tensor:
        wants = ctx.needs_input_grad[:3]
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants[0] else None
        of_weight: Tensor | None = None
        of_bias: Tensor | None = None
        rows = max(1, at_once // len(weight))
        for part in (slice(start, start + rows) for start in range(0, len(hidden), rows)):
            logits = hidden[part] @ weight.T
            if bias is not None:
                logits += bias
            logits = logits.float()
            own, largest = logits.gather(1, target[part, None])[:, 0], logits.amax(dim=-1)
            # One tensor of this size in fp32 and one exponential: what logsumexp makes for itself, made where the softmax is needed.
            slope = logits.sub_(largest[:, None]).exp_()
            sums = slope.sum(dim=-1)  # (k,)
            total += ((sums.log() + largest - own) * share[part]).sum()
            if not any(wants):
                continue
            slope *= (share[part] / sums)[:, None]
            slope.scatter_add_(1, target[part, None], -share[part, None])
            if wants[2]:
                of_bias = plus(of_bias, slope.sum(dim=0))
            slope = slope.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[part] = slope @ weight
            if wants[1]:
                of_weight = plus_product(of_weight, slope.T, hidden[part])
        grads = [of_hidden, of_weight, of_bias]
        ctx.grads, ctx.dtypes = grads, [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        return total


def plus(total: Tensor | None, part: Tensor) -> Tensor:
    """Sums of parts are kept in fp32; one part alone needs no sum."""
    return part if total is None else total.float().add_(part)


def plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """The same of a product, which fp32 adds where it is made."""
    return total.addmm_(a, b) if total is not None and total.dtype == a.dtype == torch.float32 else plus(total, a @ b)


def weighted_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor, at_once: int) -> Tensor:
    """Σ share × −log softmax(hidden · weightᵀ + bias)[target], a scalar in fp32; hidden (K, d), weight (V, d), target and share (K,).

    Products are made in the dtype of `hidden` (as a linear layer makes them), the rest in fp32. At most `at_once` logits at a time.
    A second backward pass through the same result is refused.
    """
    return _WeightedNll.apply(hidden, weight, bias, target, share, at_once)  # type: ignore[no-any-return,no-untyped-call]


@contextmanager
def head_gives_loss(head: torch.nn.Linear, target: Tensor, share: Tensor, predicting: Tensor | None) -> Iterator[None]:
    """While this is open the model's output head gives weighted_nll instead of logits; `predicting`: see head_gives."""
    with head_gives(head, lambda hidden: weighted_nll(hidden, head.weight, head.bias, target, share, LOGITS_AT_ONCE), predicting):
        yield


@contextmanager
def head_gives(head: torch.nn.Linear, made: Callable[[Tensor], Tensor], predicting: Tensor | None) -> Iterator[None]:
    """While this is open the model's output head gives what `made` makes of its hidden states (K, d), instead of logits.

    `predicting`: positions (K,) to take from what reaches the head, where the model has not taken them already. The head is called as a module all the
    same, so that ZeRO-3 gathers its weight.
    """

    def forward(hidden: Tensor) -> Tensor:  # (1, K or T, d)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return made(flat if predicting is None else flat[predicting])

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del head.forward


_gives_logits: "WeakKeyDictionary[torch.nn.Module, bool]" = WeakKeyDictionary()
"""Whether a model's head does; the head itself would keep its model alive: DeepSpeed's parameters know their engine."""


def plain_head(engine: Any, module: Any, inputs: Callable[[], dict[str, Any]]) -> torch.nn.Linear | None:
    """The output head, if the model's logits are what it gives: a linear layer and nothing behind it (Gemma 2 caps its logits, Granite scales them).

    Found by trying it once for every model, on inputs() of a few tokens; None where it is not so: then all logits must be made.
    """
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    if type(head) is not torch.nn.Linear:  # an adapter around it computes more
        return None
    if module not in _gives_logits:
        _gives_logits[module] = _try_head(engine, module, head, inputs())
    return head if _gives_logits[module] else None


def _try_head(engine: Any, module: torch.nn.Module, head: torch.nn.Linear, inputs: dict[str, Any]) -> bool:
    given: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, __, output: given.append(output.detach()))
    training = module.training
    module.eval()  # no dropout: nothing is drawn, so that a run that goes on draws what it would have drawn
    try:
        with torch.no_grad():
            logits = engine.forward(**inputs).logits
    finally:
        hook.remove()
        module.train(training)
    return len(given) == 1 and torch.equal(given[0].float(), logits.float())


def tiny_row() -> dict[str, Any]:
    """Two tokens, to try a head with."""
    return {"input_ids": np.arange(2), "position_ids": np.arange(2), "cu_seqlens": np.array([0, 2], dtype=np.int32)}
