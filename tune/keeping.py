"""Only the best trials keep their weights."""

import shutil
from collections.abc import Set
from pathlib import Path

from trainer.jobs.retention import trained_keys
from trainer.store.stages import StageStore
from tune.config import SearchConfig
from tune.deciding.ledger import Row, ranked


def best(search: SearchConfig, rows: list[Row]) -> list[Row]:
    return ranked(rows, search.direction)[: search.keep_best]


def not_needed(search: SearchConfig, rows: list[Row], at_end: bool, held: Set[str] = frozenset()) -> list[str]:
    """Keys of stages that no kept trial, no trial that is still to go on, and no two trials need.

    What several trials share stays: the next one may begin with it; so do stages of arms that `python -m trainer` has trained in the same folder (`held`).
    Until the search is at its end only the last stage of a trial goes.
    """
    kept = held | {key for row in [*best(search, rows), *(row for row in rows if not row.finished)] for key in row.stages}
    users = [key for row in rows for key in row.stages]
    found: dict[str, None] = {}
    for row in rows:
        if row.finished:
            for key in row.stages if at_end else row.stages[-1:]:
                if key not in kept and users.count(key) == 1:
                    found[key] = None
    return list(found)


def sweep(folder: Path, search: SearchConfig, rows: list[Row], at_end: bool) -> int:
    """Removes the stages that `not_needed` names, checkpoints of stopped trials among them, but for their metrics; how many."""
    store = StageStore(folder)
    removed = 0
    for key in not_needed(search, rows, at_end, trained_keys(folder)):
        stage = store.folder(key)
        if not stage.is_dir():
            continue
        (stage / "manifest.json").unlink(missing_ok=True)  # first: a half-removed stage must not look committed
        if (stage / "metrics.jsonl").is_file():
            target = folder / "search" / "metrics" / f"{key}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stage / "metrics.jsonl", target)
        shutil.rmtree(stage)
        removed += 1
    return removed
