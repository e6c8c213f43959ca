"""Rows to the device that computes, without waiting for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.rows.flat_rows import Row
from trainer.kernels.attention import attention_inputs
from trainer.kernels.on_device import on_device
from trainer.kernels.taught_loss import Told


@dataclass(frozen=True)
class PlacedRow:
    """What a micro-step computes with, on the device."""

    inputs: dict[str, Any]
    """Of the model's forward, but for the positions whose logits are wanted."""
    predicting: Tensor
    """Positions (K,) whose next token has weight."""
    target: Tensor  # (K,)
    share: Tensor
    """Weight (K,) of each target."""
    told: Told | None = None
    """What a teacher says of the last of them."""

    def tensors(self) -> Iterator[Tensor]:
        told = (self.told.follow, self.told.ids, self.told.log_probs) if self.told else ()
        buckets = chain.from_iterable(self.inputs.get("row_buckets", ()))
        for value in (*self.inputs.values(), *buckets, self.predicting, self.target, self.share, *told):
            if isinstance(value, Tensor):
                yield value


def place(row: Row, attention: str, device: torch.device) -> PlacedRow:
    """Position t predicts token t + 1. A row of static shape (data/rows/static_rows.py) has its targets padded too, with weight 0."""
    weight = row["loss_weight"][1:]  # (T - 1,), of the target
    followed = np.flatnonzero(row["follow_weight"][1:]) if "teacher_ids" in row else np.empty(0, dtype=np.int64)
    positions = np.setdiff1d(np.flatnonzero(weight), followed, assume_unique=True) if len(followed) else np.flatnonzero(weight)
    own = len(positions)
    # Of filler one target, which keeps every rank in the same collectives; those that follow a teacher come last.
    count = max(row.get("num_targets", 1) - len(followed), own, 0 if len(followed) else 1)
    positions = np.concatenate([np.pad(positions, (0, count - own)), followed])
    share = weight[positions]
    share[own:count] = 0
    targets = row["target_ids" if "target_ids" in row else "input_ids"][1:][positions]  # apart under input noise
    predicting, target, weights = (on_device(array, device) for array in (positions, targets, share))
    told = Told(*(on_device(array, device) for array in _told(row, followed))) if len(followed) else None
    return PlacedRow(model_inputs(row, attention, device), predicting, target, weights, told)


def _told(row: Row, followed: npt.NDArray[np.int64]) -> tuple[Any, ...]:
    return row["follow_weight"][1:][followed], row["teacher_ids"], row["teacher_log_probs"]


def model_inputs(row: Row, attention: str, device: torch.device) -> dict[str, Any]:
    return {
        "input_ids": on_device(row["input_ids"], device)[None],
        "position_ids": on_device(row["position_ids"], device)[None],
        "use_cache": False,
        **attention_inputs(attention, row["boundaries"] if "boundaries" in row else row["cu_seqlens"], device, row.get("longest")),
    }


class Placing:
    """Puts rows on the device when they come, which is before those ahead of them have been computed: on a GPU by a stream of its own, so that copies and kernels overlap."""

    def __init__(self, attention: str, device: torch.device) -> None:
        self._attention, self._device = attention, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def rows(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if self._stream is None:
                yield {**row, "placed": place(row, self._attention, self._device)}
                continue
            with torch.cuda.stream(self._stream):
                placed = place(row, self._attention, self._device)
            yield {**row, "placed": placed, "ready": self._stream.record_event()}


def placed(row: Row, attention: str, device: torch.device) -> PlacedRow:
    """What Placing has put there, waited for by the device alone; a row that came another way is placed now."""
    if "placed" not in row:
        return place(row, attention, device)
    if "ready" in row:
        here = torch.cuda.current_stream(device)
        here.wait_event(row["ready"])
        for tensor in row["placed"].tensors():
            if tensor.device.type == "cuda":
                tensor.record_stream(here)  # its memory is not given away before this stream has read it
    return row["placed"]  # type: ignore[no-any-return]
