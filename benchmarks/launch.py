"""From the command to the first optimiser step: python -m benchmarks.launch

Ours: `python -m trainer` on a small made world and a model folder, two CPU workers, a run folder of its own each time: records, tokens, plan, Ray,
streams, weights, engine, first step. Peer: a bare TorchTrainer in a process of its own, whose two workers import the same modules, load the
same model folder into the same DeepSpeed engine, and take one step on random tokens. A B A B, median of 5 (--rounds).
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
from console import RunError, door, progress

ROOT = Path(__file__).resolve().parent.parent
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
    from data.bios import make_bios
    from data.config import Bios
    from trainer.config import TinyModel
    from trainer.model import make_tiny_model

    documents = make_bios(Bios(replay_people=20, train_people=20, test_people=10), 0).parts["train"].documents
    make_tiny_model(folder, TinyModel(), [document.text for document in documents], 0)
    return folder


def until_first_step(command: list[str], written: Any) -> float:
    """Seconds from the start of the command to the time that written() names; the command is then asked to end."""
    started = time.time()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while time.time() - started < LIMIT_S:
            if (at := written()) is not None:
                return float(at) - started
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


def ours(folder: Path, model: Path) -> float:
    (folder / "launch.yaml").write_text(EXPERIMENT.replace("MODEL", str(model)))
    command = [sys.executable, "-m", "trainer", str(folder / "launch.yaml"), f"runs={folder}", "--no-exam"]

    def first_line() -> float | None:
        for path in folder.glob("launch/stages/*/metrics.jsonl"):
            if (text := path.read_text()) and text.endswith("\n"):
                return float(json.loads(text.splitlines()[0])["time"])
        return None

    return until_first_step(command, first_line)


def bare(folder: Path, model: Path) -> float:
    out = folder / "stepped"
    command = [sys.executable, "-m", "benchmarks.launch", "--bare", str(out), "--model", str(model)]
    return until_first_step(command, lambda: float(out.read_text()) if out.exists() else None)


def bare_worker(config: dict[str, str]) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    import trainer.worker  # noqa: F401  the same libraries
    from trainer.config import TrainerConfig
    from trainer.engine import DeepSpeedEngine

    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, trust_remote_code=False)
    engine = DeepSpeedEngine(model, TrainerConfig(), "fp32", torch.device("cpu"))
    ids = torch.randint(3, model.config.vocab_size, (1, 256))
    engine.backward(engine.forward(input_ids=ids, labels=ids).loss)
    engine.step(1e-3)
    if torch.distributed.get_rank() == 0:
        draft = Path(config["out"] + ".draft")
        draft.write_text(str(time.time()))
        draft.replace(config["out"])


def bare_main(out: str, model: str) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.connect import connected

    with connected(4):
        TorchTrainer(
            bare_worker,
            train_loop_config={"out": out, "model": model},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name="bare", storage_path=str(Path(out).parent / "ray")),
        ).fit()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", metavar="FILE", help="only the peer: write the time of its first step there")
    parser.add_argument("--model", metavar="FOLDER", help="with --bare")
    arguments = parser.parse_args(argv)
    if arguments.bare:
        return bare_main(arguments.bare, arguments.model)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with progress() as bar, tempfile.TemporaryDirectory() as models:
        model = made_model(Path(models) / "model")
        task = bar.add_task("launch", total=2 * arguments.rounds)
        for _ in range(arguments.rounds):
            for name, launch in (("ours", ours), ("bare", bare)):
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
                    seconds[name].append(launch(Path(place), model))
                bar.advance(task)
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True))
    figures = {
        "ratio": round(ratio, 3),
        "seconds": {name: round(median(of), 1) for name, of in seconds.items()},
        "rounds": {name: [round(s, 1) for s in of] for name, of in seconds.items()},
    }
    write_result_file("launch", figures, {"ratio": f"<= {GOAL}"}, ratio <= GOAL)


if __name__ == "__main__":
    door(main)
