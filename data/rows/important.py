"""Which items say how important each weight is (`anchor.ewc`): a stage's replay items, once each, in steps of a few.

importance/<key>/items.npz    a plan: which items make up each step
"""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from data.config import Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.plan import Plan, load_plan
from data.ground.durable import await_file, sync
from data.rows.token_store import TokenStore, open_store
from data.wording.templates import Wording, wording_of

_FORMAT = 1
AT_ONCE = 4
"""Items whose gradients are squared together: fewer are nearer to the Fisher information and cost a pass over the optimiser's state each."""


@dataclass(frozen=True)
class Important:
    """What a stage's workers must know of it; paths are on storage that all nodes share."""

    folder: str
    tokens: str
    """Folder of the token store, in the plain wording."""
    wording: Wording
    weight: float
    longest: int
    """Tokens of the longest item, and of the longest step."""
    tokens_at_once: int
    items: int

    def plan(self) -> Plan:
        return load_plan(await_file(Path(self.folder) / "items.npz"))

    def store(self) -> TokenStore:
        return open_store(Path(self.tokens)).worded(self.wording)

    def in_words(self) -> str:
        return (
            f"{self.items:,} replay items are read once, forward and backward: how much each weight matters to them takes 4 bytes a weight"
        )


def important_of(
    stage: Stage, plan: Plan, store: TokenStore, catalogue: Catalogue, tokens: Path, start: str, folder: Path, cut: int
) -> tuple[str, Important] | None:
    """(their identity, the items) of a stage that begins with the model of identity `start`; None without `anchor.ewc`. `store` is in the stage's wording; `cut`: tokens of a piece."""
    if stage.anchor is None or not stage.anchor.ewc:
        return None
    present = np.unique(plan.items)
    kinds = [catalogue.ranges[kind] for kind in stage.anchored_kinds()]
    chosen = np.concatenate([present[(present >= numbers.start) & (present < numbers.stop)] for numbers in kinds])
    if not len(chosen):  # a share too small for one replay document
        return None
    starts = np.append(np.arange(0, len(chosen), AT_ONCE), len(chosen))
    lengths = store.item_lengths[chosen]
    longest, steps = int(lengths.max()), np.add.reduceat(lengths, starts[:-1])
    facts = {
        **({"cut": cut} if longest > cut else {}), "format": _FORMAT, "at_once": AT_ONCE, "start": start, "tokens": store.sha256, "items": hashlib.sha256(chosen.tobytes()).hexdigest(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    _write(folder / key / "items.npz", Plan(chosen, starts, key))
    place = str((folder / key).resolve())
    return key, Important(
        place, str(tokens.resolve()), wording_of(stage), stage.anchor.ewc, min(cut, longest), int(steps.max()), len(chosen)
    )


def _write(path: Path, plan: Plan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.npz")
    plan.save(draft)
    sync(draft)
    draft.replace(path)
