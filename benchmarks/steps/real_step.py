"""A training step of a 135M model over rows that differ: python -m benchmarks.real_step [--tiny]

SmolLM2's shape with random weights, fp32, forward, backward and AdamW on CPU, one row of at most 2,048 tokens of the mix (benchmarks/mix.py) a
step, no two rows alike. Ours as one process is set up, beside the build of 06945e2 (out of git, in a folder of its own), a plain torch loop with
fused AdamW (sdpa over the row, all logits), and ours by DeepSpeed's ZeRO-1: each pair in two processes, step for step in turns; the first two
steps are not counted. The losses of ours and of the older build must agree. Goal: at least 1.2 times the older build and 1.15 times plain torch. Writes
benchmarks/results/real_step.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import write_result_file
from console import RunError, door, progress, say

ROOT = Path(__file__).resolve().parent.parent.parent
BEFORE = "06945e2"
WARM_UP, STEPS = 2, 9
GOALS = {"over_before": 1.2, "over_torch": 1.15}
PEERS = ("before", "torch", "ours_by_deepspeed")


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
        script = ROOT / "benchmarks/steps/real_step_kind.py"
        self._log, self._process = log, subprocess.Popen(
            [sys.executable, "-P", str(script), kind, size, str(steps)],
            env={**os.environ, "PYTHONPATH": str(root)}, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        own.callback(self._end)
        self._answer()  # it is ready

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


def beside(peer: str, root: Path, size: str, steps: int, advance: Callable[[], None]) -> dict[str, list[dict[str, Any]]]:
    """Figures of every step of ours and of one peer, in turns: two processes at a time, for each holds some 5 GB."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], peer: []}
    with ExitStack() as own:
        kinds = {"ours": Kind("ours", ROOT, size, steps, own), peer: Kind(peer, root, size, steps, own)}
        for number in range(steps):
            for name, kind in kinds.items():
                found[name].append(kind.step(number))
                advance()
    return found


def compared(peer: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is told of one pair: how many times as fast ours is, by the clock and by CPU seconds, over the steps that count."""
    if peer != "torch":  # whose items see each other
        losses = [[one["loss"] for one in of] for of in found.values()]
        worst = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
        assert worst < 1e-5, (
            f"losses of ours and {peer} differ by {worst:.2g} of themselves"
        )  # fp32 sums in another order, carried on by AdamW
    ours, theirs = (of[WARM_UP:] for of in found.values())

    def times(what: str) -> float:
        return round(median(b[what] / a[what] for a, b in zip(ours, theirs, strict=True)), 3)

    rates = [round(median(one["tokens"] / one["seconds"] for one in of), 1) for of in (ours, theirs)]
    told: dict[str, Any] = {
        "times": times("seconds"),
        "times_by_cpu": times("cpu_s"),
        "tokens_per_s": dict(zip(("ours", peer), rates, strict=True)),
    }
    return told if peer == "torch" else {**told, "losses_differ_by": float(f"{worst:.2g}")}


def measure(size: str, steps: int) -> dict[str, Any]:
    """Every peer beside ours."""
    with build_of(BEFORE) as before, progress() as bar:
        task = bar.add_task("real_step", total=2 * steps * len(PEERS))
        found = {peer: beside(peer, before if peer == "before" else ROOT, size, steps, lambda: bar.advance(task)) for peer in PEERS}
    pairs = {peer: compared(peer, of) for peer, of in found.items()}
    one = found["before"]["ours"][WARM_UP:]
    return {
        **{f"over_{peer}": pair["times"] for peer, pair in pairs.items()},
        "pairs": pairs,
        "rows": [step["tokens"] for step in one],
        "threads": one[0]["threads"],
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
