"""Which values of a difference are added: not the largest (they move what a model is most sensitive to), and not the smallest (they are mostly noise).

Model Breadcrumbs, arXiv 2312.06795; grafting, arXiv 2610.05872: a donor's difference, scaled, without its most sensitive share. The bounds of a tensor are
found exactly in two passes over it, a MiB at a time: magnitudes of fp32 numbers are ordered as their bits are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_HALF = 16
Parts = Callable[[], Iterable[Tensor]]
"""The tensor once more, in pieces of fp32."""


@dataclass(frozen=True)
class Kept:
    """Of each tensor's differences by their magnitude; what is equal is kept, or left out, together."""

    density: float = 1.0
    """Share that is added."""
    mask: float = 0.0
    """Share of the largest that is left out."""

    @property
    def is_all(self) -> bool:
        return self.density >= 1 and self.mask <= 0

    def bounds(self, parts: Parts, size: int) -> tuple[float, float]:
        """(least, largest) magnitude that is added, of a tensor of `size` values: of n, the ⌊mask · n⌋ largest go, and of the rest the ⌊density · n⌋ largest stay."""
        if not size:
            return 0.0, 0.0
        top, stay = (int(share * size + 1e-9) for share in (self.mask, self.density))  # 0.29 of 100 is 29, which floats put below
        if not stay:
            return float("inf"), -1.0
        bottom = max(0, size - top - stay)
        return _magnitude(parts, bottom), _magnitude(parts, size - top - 1) if top < size else -1.0

    def of(self, difference: Tensor, bounds: tuple[float, float]) -> Tensor:
        """(…) with 0 where nothing is to be added."""
        size = difference.abs()
        return torch.where((size >= bounds[0]) & (size <= bounds[1]), difference, torch.zeros(()))


ALL = Kept()


def _bits(part: Tensor) -> npt.NDArray[np.uint32]:
    return part.reshape(-1).abs().numpy().view(np.uint32)


def _magnitude(parts: Parts, rank: int) -> float:
    """The `rank`-th magnitude from the smallest on (0-based)."""
    high = sum((np.bincount(_bits(part) >> _HALF, minlength=2**_HALF) for part in parts()), np.zeros(2**_HALF, dtype=np.int64))
    first = int(np.searchsorted(np.cumsum(high), rank, side="right"))
    left = rank - int(high[:first].sum())
    low = np.zeros(2**_HALF, dtype=np.int64)
    for part in parts():
        bits = _bits(part)
        low += np.bincount(bits[bits >> _HALF == first] & (2**_HALF - 1), minlength=2**_HALF)
    second = int(np.searchsorted(np.cumsum(low), left, side="right"))
    return float(np.array([(first << _HALF) | second], dtype=np.uint32).view(np.float32)[0])
