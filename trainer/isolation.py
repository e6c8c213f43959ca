"""Whether packed items see each other, found out by trying: on this model, attention, precision and device, before a stage is trained."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from console import RunError
from trainer.attention import attention_inputs, leak
from trainer.families import has_state_space, kernels_in_words
from trainer.step import Engine

_ROUNDING = 1e-5
"""Of the largest logit. Other items' tokens change nothing, not even rounding, but where experts share matrix products."""
_EXPERTS_ROUNDING = {"fp32": 1e-5, "bf16": 2e-2}
"""Routing of other items changes the shapes of the experts' products, and with them the order of sums."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Leaks(RunError):
    """Items see each other, and the experiment asks for packed rows."""


@dataclass(frozen=True)
class Isolation:
    one_item: bool
    """Rows hold one item each."""
    change: float | None
    """Of an item's logits when another item of its row changes, of the largest logit; None: not tried."""
    why: str
    """For people, one line."""


def decide(engine: Engine, packing: Literal["auto", "packed", "one_item"], attention: str, config: Any, precision: str) -> Isolation:
    """All ranks together (a forward pass may be a collective); all get the same answer. Leaks where packed rows are asked for in vain."""
    about = f"{config.model_type}, {attention} attention, {precision}, {engine.device.type}"
    if has_state_space(engine.module):
        about += f"; state-space layers: {kernels_in_words()}"
    if packing == "one_item":
        return Isolation(True, None, f"one item per row, as trainer.packing says ({about})")
    change = _over_ranks(_change(engine, attention, int(config.vocab_size)))
    experts = any(getattr(config, name, None) for name in _EXPERTS)
    if change <= (_EXPERTS_ROUNDING[precision] if experts else _ROUNDING):
        return Isolation(False, change, f"packed rows: items do not see each other ({about}; logits move by {change:.1g} of the largest)")
    if packing == "packed":
        raise Leaks(f"packed items see each other ({about}; logits move by {change:.2g} of the largest); set trainer.packing=auto")
    return Isolation(
        True,
        change,
        f"one item per row, by length: packed items would see each other ({about}; logits move by {change:.2g} of the largest)",
    )


def _change(engine: Engine, attention: str, vocab_size: int) -> float:
    """In training mode, whose kernels may be others than evaluation's; with the same drops in both passes."""

    def logits_of(input_ids: np.ndarray[Any, Any], cu_seqlens: np.ndarray[Any, Any]) -> torch.Tensor:
        positions = np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)])
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return engine.forward(  # type: ignore[no-any-return]
                input_ids=torch.as_tensor(input_ids, device=engine.device)[None],
                position_ids=torch.as_tensor(positions, device=engine.device)[None],
                use_cache=False,
                **attention_inputs(attention, cu_seqlens, engine.device),
            ).logits[0]

    return leak(logits_of, vocab_size)


def _over_ranks(change: float) -> float:
    """The worst of all ranks, no number counting as a leak."""
    found = [change]
    if torch.distributed.is_initialized():
        found = [0.0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, change)
    return max(value if value == value else float("inf") for value in found)
