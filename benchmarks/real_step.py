"""A training step of a 135M model over rows that differ: python -m benchmarks.real_step [--tiny]

SmolLM2's shape with random weights, fp32, forward, backward and AdamW on CPU, one row of at most 2,048 tokens of the mix (benchmarks/mix.py) a
step, no two rows alike. Ours as one process is set up, ours by DeepSpeed's ZeRO-1, that of the build of 06945e2 (out of git, in a folder of its
own) and a plain torch loop with fused AdamW (sdpa over the row, all logits) each in their own process, step for step in turns; the first two
steps are not counted. The losses of ours and of the older build must agree. Goal: at least 1.2 times the older build and 1.15 times plain torch. Writes
benchmarks/results/real_step.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import write_result_file
from console import RunError, door, progress, say

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "06945e2"
WARM_UP, STEPS = 2, 9
GOALS = {"over_before": 1.2, "over_torch": 1.15}


@contextmanager
def build_of(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder that goes again; RunError where git does not know it."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if packed.returncode:
            raise RunError(f"git archive {commit}: {packed.stderr.decode().strip()}; the whole history is needed: git fetch --unshallow")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


class Kind:
    """One kind of step in its process, a step at a time."""

    def __init__(self, kind: str, root: Path, size: str, steps: int, own: ExitStack) -> None:
        log = own.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack closes it
        script = ROOT / "benchmarks" / "real_step_kind.py"
        self._log, self._process = log, subprocess.Popen(
            [sys.executable, "-P", str(script), kind, size, str(steps)],
            env={**os.environ, "PYTHONPATH": str(root)}, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        own.callback(self._end)
        self.threads = self._answer()["threads"]

    def step(self, number: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)  # type: ignore[no-any-return]
        self._log.seek(0)
        raise RunError(f"the step's process ended: {self._log.read()[-2000:]}")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(size: str, steps: int) -> dict[str, Any]:
    """Figures of every counted step by kind, and how many times as fast ours is."""
    found: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as own:
        before = own.enter_context(build_of(BEFORE))
        kinds = {
            name: Kind(name, before if name == "before" else ROOT, size, steps, own)
            for name in ("ours", "ours_by_deepspeed", "before", "torch")
        }
        bar = own.enter_context(progress())
        task = bar.add_task("real_step", total=steps * len(kinds))
        for number in range(steps):
            for name, kind in kinds.items():
                found.setdefault(name, []).append(kind.step(number))
                bar.advance(task)
        threads = kinds["ours"].threads
    losses = {name: [one["loss"] for one in of] for name, of in found.items()}
    worst = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["before"], strict=True))
    assert worst < 1e-5, f"losses of the two builds differ by {worst:.2g} of themselves"  # fp32 sums in another order, carried on by AdamW
    counted = {name: of[WARM_UP:] for name, of in found.items()}
    rates = {name: [one["tokens"] / one["seconds"] for one in of] for name, of in counted.items()}
    return {
        **{
            f"over_{name}": round(median(a / b for a, b in zip(rates["ours"], rates[name], strict=True)), 3) for name in ("before", "torch")
        },
        "tokens_per_s": {name: round(median(of), 1) for name, of in rates.items()},
        "cpu_s_per_1000_tokens": {
            name: round(median(1000 * one["cpu_s"] / one["tokens"] for one in of), 3) for name, of in counted.items()
        },
        "losses_differ_by": float(f"{worst:.2g}"),
        "rows": [one["tokens"] for one in counted["ours"]],
        "threads": threads,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_step", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters; writes no result")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps that are counted")
    arguments = parser.parse_args(argv)
    figures = measure("tiny" if arguments.tiny else "135m", WARM_UP + (2 if arguments.tiny else arguments.steps))
    if arguments.tiny:
        say(json.dumps(figures, indent=1))
        return
    holds = all(figures[name] >= goal for name, goal in GOALS.items())
    write_result_file("real_step", figures, {name: f">= {goal}" for name, goal in GOALS.items()}, holds)


if __name__ == "__main__":
    door(main)
