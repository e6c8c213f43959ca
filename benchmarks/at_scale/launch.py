"""From the command to the first optimiser step: python -m benchmarks.launch

Ours: `python -m trainer` on a small made world and a model folder, two CPU workers, a run folder of its own each time: records, tokens, plan, Ray,
streams, weights, engine, first step. Peer: a bare TorchTrainer in a process of its own, whose two workers import the same modules, load the
same model folder into the same DeepSpeed engine, and take one step on random tokens. A B A B, median of 5 (--rounds). Prints where the seconds of both are: ours by what the
command says and by rank 0's heartbeat (to half a second), the peer's by its own clock.
Goal: at most 1.1 times. Writes benchmarks/results/launch.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import write_result_file
from console import RunError, door, progress, say

Phases = dict[str, float]
"""What comes to its end → seconds since the one before."""
LINES = {
    "reading records": "driver's imports",
    "starting Ray": "torch's import, records, tokens, plan",
    "Ray 2": "Ray's start, what is left of it",
}
"""What the command says → what is over then."""
BEATS = {
    "start": "workers' start and imports",
    "load": "waiting for the first job",
    "data": "weights, engine, isolation",
    "step": "first rows of Ray Data",
}
"""Rank 0's phase → what is over when it begins."""
FIRST_STEP = "first step"
ROOT = Path(__file__).resolve().parent.parent.parent
GOAL, LIMIT_S = 1.1, 300
EXPERIMENT = """\
name: launch
about: The smallest experiment that goes the whole way.
data:
  bios: {replay_people: 20, train_people: 20, test_people: 10}
model: {name: MODEL}
base:
  - {mix: {replay_documents: 1, replay_questions: 1}, epochs: 200, batch_items: 64, rate: 2.0e-3}
arms:
  cpt: {preset: cpt}
trainer: {zero_stage: 2, row_tokens: 4096, log_every_steps: 1}
"""


def made_model(folder: Path) -> Path:
    """A tiny Llama as a user would bring it."""
    from data.config import Bios
    from data.corpus.bios import make_bios
    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    documents = make_bios(Bios(replay_people=20, train_people=20, test_people=10), 0).parts["train"].documents
    make_tiny_model(folder, TinyModel(), [document.text for document in documents], 0)
    return folder


def until_first_step(command: list[str], log: Path, look: Any) -> Phases:
    """Phases from the start of the command to its first step, whose end look(times) notes as FIRST_STEP; the command is then asked to end.

    `times`: what is over → when. `log`: gets what the command says.
    """
    times: dict[str, float] = {}
    started = time.time()
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
    try:
        while time.time() - started < LIMIT_S:
            look(times)
            if FIRST_STEP in times:
                return phases(started, times)
            if process.poll() not in (None, 0):
                raise RunError(f"{' '.join(command[1:4])} ended with code {process.returncode}")
            time.sleep(0.05)
        raise RunError(f"{' '.join(command[1:4])}: no step within {LIMIT_S} s")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else's processes
            process.wait()


def phases(started: float, times: dict[str, float]) -> Phases:
    """What is over in the order of time; a phase that was too short to be seen is in the next one."""
    found, before = {}, started
    for name, at in sorted(times.items(), key=lambda entry: entry[1]):
        found[name], before = at - before, at
    return found


def ours(folder: Path, model: Path) -> Phases:
    (folder / "launch.yaml").write_text(EXPERIMENT.replace("MODEL", str(model)))
    command = [sys.executable, "-m", "trainer", str(folder / "launch.yaml"), f"runs={folder}", "--no-exam"]

    log, beat = folder / "said.txt", folder / "launch/heartbeats/rank-00000.json"

    def look(times: dict[str, float]) -> None:
        lines = log.read_text().splitlines()
        for text in (text for text in LINES if any(text in line for line in lines)):
            times.setdefault(LINES[text], time.time())
        with suppress(OSError, ValueError):
            now = json.loads(beat.read_text())
            if now["phase"] in BEATS:  # as long ago as it says
                times.setdefault(BEATS[now["phase"]], beat.stat().st_mtime - now["for_s"])
        for path in folder.glob("launch/stages/*/metrics.jsonl"):
            if (text := path.read_text()) and text.endswith("\n"):
                times[FIRST_STEP] = float(json.loads(text.splitlines()[0])["time"])
                for late in [name for name, at in times.items() if at > times[FIRST_STEP]]:
                    del times[late]

    return until_first_step(command, log, look)


def bare(folder: Path, model: Path) -> Phases:
    out = folder / "stepped"
    command = [sys.executable, "-m", "benchmarks.launch", "--bare", str(out), "--model", str(model)]
    return until_first_step(command, folder / "said.txt", lambda times: times.update(json.loads(out.read_text()) if out.exists() else {}))


def bare_worker(config: dict[str, Any]) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    import trainer.worker  # noqa: F401  the same libraries
    from trainer.config import TrainerConfig
    from trainer.step.engine import DeepSpeedEngine

    times = {**config["times"], BEATS["start"]: time.time()}
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, trust_remote_code=False)
    engine = DeepSpeedEngine(model, TrainerConfig(), "fp32", torch.device("cpu"))
    times[BEATS["data"]] = time.time()
    ids = torch.randint(3, model.config.vocab_size, (1, 256))
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    engine.step(1e-3)
    if torch.distributed.get_rank() == 0:
        draft = Path(config["out"] + ".draft")
        draft.write_text(json.dumps({**times, FIRST_STEP: time.time()}))
        draft.replace(config["out"])


def bare_main(out: str, model: str) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.connect import connected

    imported = time.time()
    with connected(4):
        TorchTrainer(
            bare_worker,
            train_loop_config={
                "out": out,
                "model": model,
                "times": {LINES["reading records"]: imported, LINES["Ray 2"]: time.time()},
            },
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name="bare", storage_path=str(Path(out).parent / "ray")),
        ).fit()


def where_they_are(found: dict[str, list[Phases]]) -> dict[str, dict[str, float]]:
    """{phase: {"ours": seconds, "bare": seconds}}, medians over the rounds; a phase that one of them has not is not there."""
    names = dict.fromkeys([*LINES.values(), *BEATS.values(), FIRST_STEP])
    middle = {
        phase: {
            who: round(median(one.get(phase, 0.0) for one in rounds), 1)
            for who, rounds in found.items()
            if any(phase in one for one in rounds)
        }
        for phase in names
    }
    return {phase: of for phase, of in middle.items() if of}


def table(where: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"{'where the seconds are':<34}{'ours':>8}{'bare':>8}"]
    for phase, of in where.items():
        lines.append(f"{phase:<34}" + "".join(f"{of[who]:8.1f}" if who in of else f"{'–':>8}" for who in ("ours", "bare")))
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", metavar="FILE", help="only the peer: write the time of its first step there")
    parser.add_argument("--model", metavar="FOLDER", help="with --bare")
    arguments = parser.parse_args(argv)
    if arguments.bare:
        return bare_main(arguments.bare, arguments.model)
    found: dict[str, list[Phases]] = {"ours": [], "bare": []}
    with progress() as bar, tempfile.TemporaryDirectory() as models:
        model = made_model(Path(models) / "model")
        task = bar.add_task("launch", total=2 * arguments.rounds)
        for _ in range(arguments.rounds):
            for name, launch in (("ours", ours), ("bare", bare)):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
                    found[name].append(launch(Path(place), model))
                bar.advance(task)
    seconds = {name: [sum(one.values()) for one in rounds] for name, rounds in found.items()}
    where = where_they_are(found)
    for line in table(where):
        say(line)
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True))
    figures = {
        "ratio": round(ratio, 3),
        "seconds": {name: round(median(of), 1) for name, of in seconds.items()},
        "rounds": {name: [round(s, 1) for s in of] for name, of in seconds.items()},
        "where": where,
    }
    write_result_file("launch", figures, {"ratio": f"<= {GOAL}"}, ratio <= GOAL)


if __name__ == "__main__":
    door(main)
