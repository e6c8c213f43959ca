"""What training draws at random: from which key, and what of it is refused.

Dropout (an adapter's, a model's own) and a router's jitter take their numbers from torch's generators. Before every micro-step these are set
by (seed, place of the stage in its arm, step, micro-step, rank): a resumed stage draws what the unbroken one did, and ranks and steps draw
apart. Rows are packed for a number of workers, so with another number other masks fall on other rows, as another seed would.
"""

import hashlib
from typing import Any

import torch

from console import UserError
from data.adapters import Adapter
from data.rows import Row
from trainer.config import TrainerConfig
from trainer.step import Draws

_NOT_OURS = ("classifier", "summary")
"""Dropouts in front of heads that a language model does not have."""


def draws_of(seed: int, number: int, rank: int) -> Draws:
    """`number`: of the stage in its arm. 10 µs a micro-step, so it is done whether anything is drawn or not."""

    def draw(row: Row) -> None:
        digest = hashlib.sha256(f"{seed} {number} {row['step']} {row['micro_step']} {rank} draws".encode()).digest()
        seed_of_row = int.from_bytes(digest[:7], "big")
        torch.default_generator.manual_seed(seed_of_row)  # torch.manual_seed writes down the call stack for GPUs that may come later
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed_of_row)

    return draw


def refuse_draws(config: Any, adapters: list[Adapter], trainer: TrainerConfig) -> None:
    """UserError for what is drawn at random and cannot be right with these settings; `config`: transformers' of the model."""
    found = {f"model: its config's {name}": value for name, value in _of_model(config).items()}
    found |= {f"adapter: {name}": value for adapter in adapters for name, value in adapter.drawn().items()}
    for what, value in found.items():
        if "layerdrop" in what:
            raise UserError(f"{what}: {value:g} skips layers on one worker and not on another, which then wait for each other; set it to 0")
        if ("attention" in what or "attn" in what) and trainer.attention == "varlen":
            raise UserError(f"{what}: {value:g}, and trainer.attention: varlen knows no dropout; use another attention, or set it to 0")
        if isinstance(trainer.num_workers, tuple) and trainer.num_workers[0] != trainer.num_workers[1]:
            raise UserError(
                f"{what}: {value:g} is drawn by each worker for its own rows, so trainer.num_workers: {list(trainer.num_workers)} would train other "
                "weights with every number of them; give one number, or set it to 0"
            )


def _of_model(config: Any) -> dict[str, float]:
    """Shares of a model's own config by which something is drawn in training: attention_dropout, resid_pdrop, router_jitter_noise, …"""
    values = config.get_text_config().to_dict()
    drawn = {name: value for name, value in values.items() if "drop" in name or "jitter" in name}
    return {
        name: value
        for name, value in drawn.items()
        if isinstance(value, float) and value > 0 and not any(other in name for other in _NOT_OURS)
    }
