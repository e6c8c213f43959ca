"""Whether packed items see each other, found out by trying: on this model, attention, precision, device and lengths, before a stage is trained."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from console import RunError
from trainer.kernels.attention import attention_inputs, leak
from trainer.kernels.row_probe import apart, displacement, not_moved
from trainer.network.families import has_state_space, kernels_in_words, rows_mix
from trainer.step.step import Engine, base_module, keeps_logits

_ROUNDING = 1e-5
"""Of the largest logit. Other items' tokens change nothing, not even rounding, but where experts share matrix products."""
_EXPERTS_ROUNDING = {"fp32": 1e-5, "bf16": 2e-2}
"""Routing of other items changes the shapes of the experts' products, and with them the order of sums."""
_LARGEST_LOGIT = 1e6
"""A model that computes anything stays below 1e3."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Leaks(RunError):
    """Items see each other, and the experiment asks for packed rows."""


class NotCausal(RunError):
    """The model is no language model that reads from left to right and counts from 0, so a row's loss is not what it seems."""


class Exploded(RunError):
    """Weights that a stage goes on from compute nothing any more; scores beyond a mask's numbers would look like a model that sees what is behind."""


@dataclass(frozen=True)
class Isolation:
    one_item: bool
    """Rows hold one item each."""
    change: float | None
    """Of an item's logits when another item of its row changes, of the largest logit; None: not tried."""
    why: str
    """For people, one line."""


def decide(
    engine: Engine,
    packing: Literal["auto", "packed", "one_item"],
    attention: str,
    config: Any,
    precision: str,
    row_tokens: int,
    longest: int,
) -> Isolation:
    """All ranks together (a forward pass may be a collective); all get the same answer. Leaks where packed rows are asked for in vain.

    `row_tokens`, `longest`: tokens of the longest row and of the longest item that the stage has.
    """
    text = config.get_text_config()
    about = f"{config.model_type}, {attention} attention, {precision}, {engine.device.type}"
    if has_state_space(engine.module):
        about += f"; state-space layers: {kernels_in_words()}"
    experts = any(getattr(text, name, None) for name in _EXPERTS)
    routed = experts and precision == "bf16"  # in fp32 rounding routes no token otherwise
    _refuse_what_is_not_causal(engine, attention, int(text.vocab_size), about, not_moved(precision), routed)
    if packing == "one_item":
        return Isolation(True, None, f"one item per row, as trainer.packing says ({about})")
    change, found = None, rows_mix(config, row_tokens, longest)
    if not found:
        change = _over_ranks(_change(engine, attention, int(text.vocab_size)))
        if change > (_EXPERTS_ROUNDING[precision] if experts else _ROUNDING):
            found = f"logits move by {change:.2g} of the largest"
    if not found:
        moved = _over_ranks(_displacement(engine, attention, int(text.vocab_size), row_tokens, longest, routed))
        if moved > not_moved(precision):
            change, found = moved, f"an item's logits differ by {moved:.2g} of the largest with its place in a row of {row_tokens:,} tokens"
    if not found:
        return Isolation(False, change, f"packed rows: items do not see each other ({about}; logits move by {change:.1g} of the largest)")
    if packing == "packed":
        raise Leaks(f"packed items see each other ({about}; {found}); set trainer.packing=auto")
    return Isolation(True, change, f"one item per row, by length: packed items would see each other ({about}; {found})")


def _refuse_what_is_not_causal(engine: Engine, attention: str, vocab_size: int, about: str, bound: float, routed: bool) -> None:
    """Of one item alone: what stands behind a token must not move its logits (BERT and its kin read both ways), nor must positions counted by us instead of by the model."""
    tokens = np.random.default_rng(1).integers(0, vocab_size, 20)
    other = np.concatenate([tokens[:11], (tokens[11:] + 1) % vocab_size])
    alone = np.array([0, 20], dtype=np.int32)
    logits, behind = (_drawn_alike(engine, _inputs(engine, attention, ids, alone)) for ids in (tokens, other))
    if (largest := _over_ranks(_largest(logits))) > _LARGEST_LOGIT:
        raise Exploded(
            f"model: its logits are as large as {largest:.2g}, so its weights have exploded in the steps before ({about}); lower the rate"
        )
    uncounted = {name: value for name, value in _inputs(engine, attention, tokens, alone).items() if name != "position_ids"}
    if _over_ranks(apart(behind[:11], logits[:11], routed)) > bound:
        raise NotCausal(
            f"model: its tokens see those behind them, so every answer would be seen before it is asked for ({about}); take a causal language model"
        )
    if _over_ranks(apart(_drawn_alike(engine, uncounted), logits, routed)) > bound:
        raise NotCausal(f"model: it does not count its positions from 0 ({about}): not supported")


def _largest(logits: torch.Tensor) -> float:
    return float(logits.abs().max()) if bool(torch.isfinite(logits).all()) else float("inf")


def _drawn_alike(engine: Engine, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits (T, V) in fp32, in training mode, whose kernels may be others than evaluation's; with the same drops every time."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return engine.forward(**inputs).logits[0].float()  # type: ignore[no-any-return]


def _change(engine: Engine, attention: str, vocab_size: int) -> float:
    return leak(lambda ids, cu_seqlens: _drawn_alike(engine, _inputs(engine, attention, ids, cu_seqlens)), vocab_size)


_displacements: dict[tuple[Any, ...], float] = {}
"""Full rows cost what some micro-steps cost, and their answer is the architecture's: once a process for each, and each size of row."""


def _displacement(engine: Engine, attention: str, vocab_size: int, row_tokens: int, longest: int, routed: bool) -> float:
    """In evaluation mode, for drops would differ with the place. Only where logits are looked at are they made, if the model can."""
    module = base_module(engine.module)
    keeps = keeps_logits(type(module).forward)

    def logits_of(input_ids: Any, cu_seqlens: Any, positions: Any) -> torch.Tensor:
        at = torch.as_tensor(positions, device=engine.device)
        inputs = _inputs(engine, attention, input_ids, cu_seqlens) | ({"logits_to_keep": at} if keeps else {})
        with torch.no_grad():
            logits = engine.forward(**inputs).logits[0]
        return logits if keeps else logits[at]

    key = (type(module), str(module.config), attention, next(module.parameters()).dtype, row_tokens, longest)
    if key not in _displacements:
        module.eval()
        try:
            _displacements[key] = displacement(logits_of, vocab_size, row_tokens, longest, typical=routed)
        finally:
            module.train()
    return _displacements[key]


def _inputs(engine: Engine, attention: str, input_ids: np.ndarray[Any, Any], cu_seqlens: np.ndarray[Any, Any]) -> dict[str, Any]:
    positions = np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)])
    return {
        "input_ids": torch.as_tensor(input_ids, device=engine.device)[None],
        "position_ids": torch.as_tensor(positions, device=engine.device)[None],
        "use_cache": False,
        **attention_inputs(attention, cu_seqlens, engine.device),
    }


def _over_ranks(change: float) -> float:
    """The worst of all ranks, no number counting as a leak."""
    found = [change]
    if torch.distributed.is_initialized():
        found = [0.0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, change)
    return max(value if value == value else float("inf") for value in found)
