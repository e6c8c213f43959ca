"""The matrix as data: every cell is one optimiser step of a family, of what is trained and how, on rows of a kind, under a stage and a precision."""

import itertools
from dataclasses import dataclass
from typing import Any

from data.adapters import KINDS
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

    @property
    def without_stage(self) -> tuple[str, ...]:
        """Cells that are alike in this differ in their ZeRO stage alone."""
        return (self.family, self.trained, self.rows, self.precision, str(self.workers))


def whole_matrix() -> list[Cell]:
    return [Cell(*factors) for factors in itertools.product(FAMILIES, TRAINED, ROWS, (0, 1, 2, 3), ("fp32", "bf16"), (1, 2))]
