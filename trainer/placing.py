"""Rows to the device that computes, without waiting for it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.rows import Row
from trainer.attention import attention_inputs
from trainer.on_device import on_device


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

    def tensors(self) -> Iterator[Tensor]:
        yield from (value for value in self.inputs.values() if isinstance(value, Tensor))
        yield from (getattr(self, field.name) for field in fields(self) if field.name != "inputs")


def place(row: Row, attention: str, device: torch.device) -> PlacedRow:
    """Position t predicts token t + 1. A row of static shape (data/static_rows.py) has its targets padded too, with weight 0."""
    weight = row["loss_weight"][1:]  # (T - 1,), of the target
    positions = np.flatnonzero(weight)
    count = max(row.get("num_targets", 1), len(positions))  # of filler one target, which keeps every rank in the same collectives
    positions = np.pad(positions, (0, count - len(positions)))
    share = np.where(np.arange(count) < np.count_nonzero(weight), weight[positions], np.float32(0))
    targets = row["target_ids" if "target_ids" in row else "input_ids"][1:][positions]  # apart under input noise
    return PlacedRow(model_inputs(row, attention, device), *(on_device(array, device) for array in (positions, targets, share)))


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
