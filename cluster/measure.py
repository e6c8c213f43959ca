"""`--measure`: the real engine for a few steps on the hardware at hand, and what they say about the model's speed.

It runs `python -m trainer` itself on the experiment's longest stage, in a scratch run folder, so that everything which decides the speed is as
in the run: streams, packing, DeepSpeed, attention. The stage's end, with its save, is part of it.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.cost.chips import Hardware
from cluster.cost.speed import step_time
from cluster.setups import Question
from cluster.workload import StageWork
from console import RunError, say
from experiment import Experiment

_WARM_UP = 2
_STEPS = 3
FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    hardware: str
    """Of the machine that was measured, as Hardware prints it without the number: "H100", "CPU"."""
    num_workers: int
    step_s: float
    speed: float
    """Modelled over measured seconds: above 1 this machine is faster than the model. 1 on CPUs."""
    seconds_per_flop: float | None
    memory_gib: float
    """Peak that a rank reported."""


def measure(file: str, overrides: list[str], experiment: Experiment, question: Question, here: Hardware) -> Calibration:
    """Trains {warm-up + 3} steps here, writes runs/<name>/calibration.json. RunError where the trainer fails."""
    number, work = max(enumerate(question.workload.stages), key=lambda pair: pair[1].tokens / pair[1].steps)
    workers = _workers(experiment, here)
    scratch = Path(tempfile.mkdtemp(prefix="measure-"))
    say(f"measuring: {_WARM_UP + _STEPS} steps of stage {number + 1} ({work.label}) on {workers} worker(s); scratch run in {scratch}")
    stage = _stage(experiment, work)
    command = [
        sys.executable, "-m", "trainer", file, *overrides, f"runs={scratch}", "base=[]", "updates={}", "exam.compare_to=measured",
        f"arms={json.dumps({'measured': {'stages': [stage]}})}", f"trainer.num_workers={workers}", "trainer.log_every_steps=1", "--no-exam",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, text=True, capture_output=True)
        if done.returncode:
            raise RunError(f"measuring failed: {(done.stderr.strip().splitlines() or ['no message'])[-1].removeprefix('error: ')}")
        (metrics,) = scratch.glob("*/stages/*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()][_WARM_UP:]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = calibration_of(rows, question, work, replace(here, num_gpus=workers))
    experiment.folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / FILE).write_text(json.dumps(found.__dict__, indent=1) + "\n")
    say(
        f"measured: {found.step_s:.3g} s a step, {statistics.median(row['tokens_per_s'] for row in rows):,.0f} tokens/s, peak {found.memory_gib:.1f} GiB a rank"
    )
    return found


def calibration_of(rows: list[dict[str, float]], question: Question, work: StageWork, hardware: Hardware) -> Calibration:
    """From the metrics of a few steps on `hardware` with the file's set-up. Pure."""
    step_s = statistics.median(row["step_s"] for row in rows)
    tokens = statistics.median(row["tokens"] for row in rows)
    memory = max(row["memory_gib"] for row in rows)
    name = hardware.chip.name if hardware.chip else "CPU"
    load = question.load(work, question.file.row_tokens, hardware)
    if hardware.chip is None:
        flops = tokens / load.fill / hardware.num_gpus * question.shape.flops_per_token(work.attended)
        more = step_time_factor(question)
        return Calibration(name, hardware.num_gpus, step_s, 1.0, step_s / flops / more, memory)
    load = replace(load, tokens=load.tokens * tokens * work.steps / work.tokens)  # these steps may be longer than the mean
    modelled = step_time(question.shape, question.file, load, replace(hardware, speed=1.0).in_precision(question.fp32)).total
    return Calibration(name, hardware.num_gpus, step_s, modelled / step_s, None, memory)


def step_time_factor(question: Question) -> float:
    """How much longer the file's set-up computes than one without recomputation."""
    from cluster.cost.speed import RECOMPUTE

    return 1 + RECOMPUTE * question.file.recompute


def calibrated(hardware: Hardware, run_folder: Path) -> Hardware:
    """With the speed that was measured for this run on the same kind of GPU (or CPU), where there is one."""
    path = run_folder / FILE
    if not path.is_file():
        return hardware
    found = Calibration(**json.loads(path.read_text()))
    if found.hardware != (hardware.chip.name if hardware.chip else "CPU"):
        return hardware
    return replace(hardware, speed=found.speed, seconds_per_flop=found.seconds_per_flop)


def _workers(experiment: Experiment, here: Hardware) -> int:
    _, most = experiment.trainer.workers(here.num_gpus if here.chip else 0)
    return min(most, here.num_gpus) if here.chip else most


def _stage(experiment: Experiment, work: StageWork) -> dict[str, object]:
    """The experiment's stage of that plan, cut to a few steps."""
    for arm in ("base", *experiment.arms):
        for stage in experiment.stages(arm):
            if " + ".join(stage.mix.kinds()) == work.label:
                values = stage.model_dump(mode="json", exclude_defaults=True)
                return {**{k: v for k, v in values.items() if k != "epochs"}, "steps": _WARM_UP + _STEPS}
    raise AssertionError(work.label)
