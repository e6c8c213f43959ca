"""What is known of every trial, on disk: a restart of the driver reads it, the report is made of it.

runs/<name>/search/search.json          what all trials have in common; other settings are another search
runs/<name>/search/trials/<id>.json     one row a trial, written by the trial itself at every rung, whole or not at all
runs/<name>/search/base.json            what trials start from, examined
runs/<name>/search/scores/              answers of every exam, one Parquet file each (evaluation/score_files.py)
runs/<name>/search/work                 a folder a trial, by id, where it works: heartbeats, logs; stages, tokens and plans are the run's own
runs/<name>/stages/                     the stage store, shared by all trials and by python -m trainer
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from console import UserError
from tune.config import SearchConfig
from tune.deciding.space import Values, trial_id

State = Literal["running", "paused", "done", "stopped", "refused", "failed"]
FINISHED: tuple[State, ...] = ("done", "stopped", "refused", "failed")
"""paused: its time was over before it was; the next start of the search goes on with it."""


_TRAINER = ("clip", "betas", "weight_decay", "precision", "row_tokens", "long_documents", "adapter", "fp8")
"""Of the trainer's settings what changes a score; the number of workers may differ after a restart."""


@dataclass
class Rung:
    """One look at a trial."""

    share: float
    """Of its own schedule; 1: the end."""
    score: dict[str, float]
    """{"mean", "low", "high", "n"} of the metric on the validation questions."""
    guard: float | None
    """Mean of the guarded set, where there is a guard."""
    tokens: int
    """Trained by then, since the base."""


@dataclass
class Row:
    id: str
    values: Values
    state: State = "running"
    reason: str = ""
    """Why it was stopped, refused or failed."""
    started: float = 0.0
    """Seconds since 1970."""
    rungs: list[Rung] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    """Keys of its stages after the base, in their order."""
    steps: int = 0
    """What this trial trained itself; what others had trained before it is theirs."""
    tokens: int = 0
    train_seconds: float = 0.0
    exam_seconds: float = 0.0
    gpu_hours: float = 0.0
    signals: dict[str, float] = field(default_factory=dict)
    """Means over the steps before its first rung: grad_norm, early_loss."""
    hf: str = ""
    """The weights that were examined last, below the run folder; gone where others were better."""
    template: str = "pit"

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def last(self) -> Rung | None:
        return self.rungs[-1] if self.rungs else None

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.exam_seconds


class Ledger:
    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "search"
        self._trials = self.folder / "trials"

    def read(self, id: str) -> Row | None:
        path = self._trials / f"{id}.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return Row(**{**content, "rungs": [Rung(**rung) for rung in content["rungs"]]})

    def read_values(self, values: Values) -> Row | None:
        return self.read(trial_id(values))

    def begin(self, values: Values) -> Row:
        """The trial's row as it was, or a new one; running from now on."""
        row = self.read(trial_id(values)) or Row(trial_id(values), values, started=time.time())
        row.state, row.reason = "running", ""
        self.write(row)
        return row

    def write(self, row: Row) -> None:
        from trainer.store.stages import write_json

        write_json(self._trials / f"{row.id}.json", asdict(row))

    def rows(self) -> list[Row]:
        """In the order in which they began."""
        rows = [row for path in self._trials.glob("*.json") if (row := self.read(path.stem))]
        return sorted(rows, key=lambda row: (row.started, row.id))

    def forget(self, state: State) -> int:
        """Rows in this state are tried again as if they had never been; how many there were."""
        found = [row for row in self.rows() if row.state == state]
        for row in found:
            (self._trials / f"{row.id}.json").unlink()
        return len(found)

    def base(self) -> dict[str, Any] | None:
        """What trials start from, once it has been examined: {"score", "guard", "hf", "weights", "template"}."""
        path = self.folder / "base.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def check_identity(self, facts: dict[str, Any]) -> None:
        """UserError when this folder holds another search: scores of two exams or two models cannot stand in one table."""
        from trainer.store.stages import write_json

        path = self.folder / "search.json"
        if not path.is_file():
            write_json(path, facts)
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(facts))
        if differing := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
            raise UserError(
                f"{self.folder}: holds a search that differs in {', '.join(differing)}; give this one another name=…, "
                "or remove the folder to begin anew"
            )


def identity(values: dict[str, Any], arm: str, search: SearchConfig, records_sha256: str) -> dict[str, Any]:
    """What all trials of a search have in common. Caps, concurrency, and what is kept may change; of a grid or a list the space too."""
    told = {key: value for key, value in values.items() if key not in ("about", "name", "runs", "search", "arms", "trainer")}
    told["trainer"] = {key: value for key, value in (values.get("trainer") or {}).items() if key in _TRAINER}
    facts = {
        "experiment": hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "arm": {arm: values["arms"][arm]},
        "records": records_sha256,
        "metric": search.metric,
        "guard": search.guard.model_dump() if search.guard else None,
        "stopping": search.stopping.model_dump(),
    }
    if search.algorithm == "optuna":  # its model of the space knows these ranges and no others
        facts["space"] = search.model_dump()["space"]
    return facts


def ranked(rows: list[Row], direction: str) -> list[Row]:
    """Trials that came to their end and were not refused, the best first; of equals the one that trained less."""
    sign = 1 if direction == "max" else -1
    ended = [row for row in rows if row.state == "done" and row.last]
    return sorted(ended, key=lambda row: (-sign * row.rungs[-1].score["mean"], row.rungs[-1].tokens))
