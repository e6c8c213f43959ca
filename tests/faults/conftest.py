"""What fault tests share: a small experiment, groups of processes, the oracle, and the table that `make faults` prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.experiments import tiny
from tests.helpers.groups import Groups

# Two stages of 60 and 40 steps of tiny work; a checkpoint every 10 steps.
KILLED_AFTER_30 = "step.begin=sleep:1@36,step.begin=kill@37"
"""Long enough after step 30 for its save, which goes on beside the steps, to be committed."""

EXPERIMENT = (
    tiny("small", 0, 8, 4)
    + """\
arms:
  only:
    stages:
      - {{mix: {{train_documents: 1, test_documents: 1}}, epochs: 60, batch_items: 12, rate: 3.0e-3}}
      - {{mix: {{train_questions: 1}}, epochs: 20, batch_items: 20, rate: 1.0e-3}}
trainer: {{row_tokens: 256, log_every_steps: 1, checkpoint: {{every_steps: 10}}, max_failures: 3}}
"""
)


def write_experiment(folder: Path, runs: str = "runs") -> Path:
    path = folder / f"{runs}.yaml"
    path.write_text(EXPERIMENT.format(runs=folder / runs))
    return path


def oracle(run: Path, every: int = 1) -> dict[str, Any]:
    """Of every committed stage: losses and norms in hexadecimal by step, the hash of the weights, the plan's hash.

    every: trainer.log_every_steps of the run; the last step of a stage is always written.
    """
    stages = {}
    for path in sorted((run / "stages").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        steps = [(row["step"], float(row["loss"]).hex(), float(row["grad_norm"]).hex(), row["tokens"]) for row in rows]
        last = manifest["job"]["num_steps"] - 1
        assert [step for step, *_ in steps] == [n for n in range(last + 1) if n % every == 0 or n == last], "a step was repeated or skipped"
        totals = {name: manifest["totals"][name] for name in ("steps", "tokens", "bad_steps")}
        stages[path.parent.name] = (steps, manifest["weights_sha256"], manifest["job"]["plan_sha256"], totals)
    return stages


@pytest.fixture(scope="session")
def undisturbed(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The oracle: what two ranks do when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert groups(write_experiment(folder)) == [0, 0], "the undisturbed run failed"
    return oracle(folder / "runs" / "small")


def events_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "logs").glob("events-*.jsonl")))
