"""What training draws at random: from which key, and what of it is refused.

Dropout (an adapter's, a model's own) and a router's jitter take their numbers from torch's generators. Before every micro-step these are set
by (seed, place of the stage in its arm, step, micro-step, rank): a resumed stage draws what the unbroken one did, and ranks and steps draw
apart. Rows are packed for a number of workers, so with another number other masks fall on other rows, as another seed would.
"""

import hashlib
from typing import Any

import torch

from console import UserError
from data.rows.flat_rows import Row
from trainer.config import TrainerConfig
from trainer.step.step import Draws

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


def refuse_draws(config: Any, trainer: TrainerConfig) -> None:
    """UserError for what a model's own config has drawn at random and cannot be right with these settings."""
    for name, share in drawn_by(config).items():
        what = f"model: its config's {name}"
        if "layerdrop" in name:
            raise UserError(f"{what}: {share:g} skips layers on one worker and not on another, which then wait for each other; set it to 0")
        if why := trainer.refused_draw(what.replace("attn", "attention"), share):
            raise UserError(why)


def drawn_by(config: Any) -> dict[str, float]:
    """Shares of a model's own config by which something is drawn in training: attention_dropout, resid_pdrop, router_jitter_noise, …"""
    values = config.get_text_config().to_dict()
    drawn = {name: value for name, value in values.items() if "drop" in name or "jitter" in name}
    return {
        name: value
        for name, value in drawn.items()
        if isinstance(value, float) and value > 0 and not any(other in name for other in _NOT_OURS)
    }
