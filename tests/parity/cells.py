"""The matrix as data: every cell is one optimiser step of a family, of what is trained and how, on rows of a kind, under a stage and a precision."""

import itertools
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from data.ground.adapters import KINDS
from tests.parity.models import FAMILIES

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "init": False},
    "dora": {"r": 4, "init": False, "use_dora": True},
    "loha": {"type": "loha", "r": 4, "init_weights": False},
    "lokr": {"type": "lokr", "r": 4, "init_weights": False},
    "ia3": {"type": "ia3", "feedforward_modules": [], "init_ia3_weights": False},
    "oft": {"type": "oft", "oft_block_size": 4, "init_weights": False},
    "hra": {"type": "hra", "r": 4, "init_weights": False},
    "miss": {"type": "miss", "r": 4, "init_weights": False},
}
"""Started at random, so that every weight has a gradient in the first step and is seen in the first loss."""
assert {adapter.get("type", "lora") for adapter in ADAPTERS.values()} == set(KINDS)
TRAINED: dict[str, dict[str, Any]] = {
    "all": {},
    "frozen": {"freeze_share": 0.5},
    **{kind: {"adapter": adapter} for kind, adapter in ADAPTERS.items()},
}
"""What is trained → those fields of a stage."""
ROWS = ("short", "long")


@dataclass(frozen=True)
class Cell:
    family: str
    trained: str
    rows: str
    zero: int
    precision: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.family} {self.trained} {self.rows} zero{self.zero} {self.precision} x{self.workers}"


def stages() -> list[Cell]:
    """One network under every stage and precision, which are held against each other to the bit."""
    return [cell for cell in whole_matrix() if (cell.family, cell.trained, cell.rows, cell.workers) == ("qwen3", "all", "short", 2)]


def whole_matrix() -> list[Cell]:
    return [Cell(*factors) for factors in itertools.product(FAMILIES, TRAINED, ROWS, (0, 1, 2, 3), ("fp32", "bf16"), (1, 2))]


_COST = {("rows", "long"): 3.0, ("workers", 2): 1.5}


def pairs_of(cell: Cell) -> set[frozenset[tuple[str, Any]]]:
    """What a cell shows of two factors together. Of the kinds of adapter, all but their families: that alone would be a hundred cells."""
    what = cell.trained if cell.trained not in ADAPTERS else "adapter"
    common = {"rows": cell.rows, "zero": cell.zero, "precision": cell.precision, "workers": cell.workers}
    groups = [{**common, "family": cell.family, "trained": what}, {**common, **({"adapter": cell.trained} if what == "adapter" else {})}]
    return {frozenset(pair) for group in groups for pair in itertools.combinations(group.items(), 2)}


@cache
def covering() -> list[Cell]:
    """A choice of the matrix in which every pair of two factors' values occurs, the same one each time: the cell that adds most for its cost, until
    none is missing. ZeRO 0 in bf16 is refused for all, so one cell stands for it, and nothing else counts as seen there."""
    refused = [cell for cell in whole_matrix() if cell.zero == 0 and cell.precision == "bf16"]
    candidates = [
        cell for cell in reversed(whole_matrix()) if cell not in set(refused)
    ]  # of equals that of ZeRO-3, in bf16, by two workers
    bit = {pair: 1 << n for n, pair in enumerate(set().union(*map(pairs_of, candidates)))}
    shown = {cell: sum(bit[pair] for pair in pairs_of(cell)) for cell in candidates}
    cost = {cell: prod(factor for (name, value), factor in _COST.items() if getattr(cell, name) == value) for cell in candidates}
    chosen, missing = refused[:1], sum(bit.values())
    while missing:
        best = max(candidates, key=lambda cell: (shown[cell] & missing).bit_count() / cost[cell])
        missing &= ~shown[best]
        chosen.append(best)
    return chosen
