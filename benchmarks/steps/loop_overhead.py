"""What our loop adds to a step: python -m benchmarks.loop_overhead

Two workers of Ray Train, one DeepSpeed engine (ZeRO-2, fp32, a random Llama). In turns, five times: a stage of 12 steps as trainer/worker.py
runs it (rows through Ray Data, guard, heartbeat, metrics to file and TensorBoard, losses agreed), and the bare loop: rows that lie in memory
already, forward, backward, step. The same rows, the same mathematics; the first four steps of each turn are not counted (streams begin).
Goal: at most 1.05 times the bare loop's median step, steps of 200 ms or more. Writes benchmarks/results/loop_overhead.json.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from benchmarks.mix import mixed_lengths
from benchmarks.result_file import write_result_file
from benchmarks.tiny import made_store, plan_of, save_store
from cluster.connect import connected
from console import door, say
from data.config import Mix, Stage
from data.curriculum.plan import load_plan
from data.rows.flat_rows import rank_rows
from data.rows.stream import RankShares, StreamSpec, iterate, step_spans
from data.rows.token_store import open_store
from trainer.config import TrainerConfig

ROUNDS, STEPS, WARM_UP = 5, 12, 4
STEP_ITEMS, CAPACITY, WORLD_SIZE = 16, 8192, 2  # a row of some 2,300 tokens on each rank
GOAL = 1.05
STAGE = Stage(mix=Mix(train_documents=1), steps=STEPS, batch_items=STEP_ITEMS, rate=1e-4)


def worker(config: dict[str, Any]) -> None:
    """One rank: both loops in turns; rank 0 writes the seconds of every counted step."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    import torch

    torch.set_num_threads(1)
    from benchmarks.tiny import tiny_llama
    from trainer.jobs.prepare import Job
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.network.flops import row_flops
    from trainer.step.engine import DeepSpeedEngine
    from trainer.step.loop import run_stage
    from trainer.step.reporter import Reporter
    from trainer.step.step import row_loss
    from trainer.store.checkpoint import Saver
    from trainer.watch.guard import Guard
    from trainer.watch.heartbeat import Heartbeat

    folder = Path(config["folder"])
    rank = torch.distributed.get_rank()
    trainer = TrainerConfig()
    model = tiny_llama("by_item", hidden=config["hidden"])
    engine = DeepSpeedEngine(model, trainer, "fp32", torch.device("cpu"))
    settings = WorkerSettings(str(folder), "", trainer, "fp32", 0, False)
    beat = Heartbeat(folder, rank, "", 1800.0)
    job = Job("overhead", None, "overhead", STAGE, STEPS, config["plan"], "made", CAPACITY, CAPACITY)
    rows = list(rank_rows(load_plan(Path(config["plan"])), open_store(Path(config["tokens"])), rank, WORLD_SIZE, CAPACITY, "token"))
    seconds: dict[str, list[list[float]]] = {"ours": [], "bare": []}
    waits: list[float] = []

    def ours(number: int) -> list[float]:
        stage_folder = folder / "stages" / str(number)
        stage_folder.mkdir(parents=True, exist_ok=True)
        reporter = Reporter(settings, job, stage_folder, 0) if rank == 0 else None
        saver = Saver(stage_folder, rank, WORLD_SIZE, {"job": {"key": "overhead"}}, 2, 3)
        spent: list[float] = []

        def report(metrics: dict[str, Any]) -> None:
            spent.append(metrics["step_s"])
            if metrics["step"] >= WARM_UP:
                waits.append(metrics["data_wait_s"])
            if reporter:
                reporter.step(metrics)

        guard = Guard(engine, saver, beat, trainer, "overhead", rank)
        stream = iterate(ray.train.get_dataset_shard(str(number)), 120.0)
        run_stage(engine, stream, STAGE, STEPS, "by_item", lambda row: row_flops(model.config, row["cu_seqlens"]), report, guard=guard)
        if reporter:
            reporter.close()
        return spent

    def bare() -> list[float]:
        spent = []
        for row in rows:
            started = time.monotonic()
            engine.backward(row_loss(engine, row, "by_item"))
            engine.step(1e-4)
            spent.append(time.monotonic() - started)
        return spent

    assert len(rows) == STEPS, "one row a rank and step"
    for number in range(ROUNDS):
        for name, steps in (("ours", ours(number)), ("bare", bare())):
            seconds[name].append(steps[WARM_UP:])
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps({**seconds, "waits": waits}))
    beat.close()


def run(folder: Path, hidden: int) -> dict[str, Any]:
    store = made_store(mixed_lengths(STEPS * STEP_ITEMS), True)
    save_store(store, folder / "tokens")
    plan_of(STEPS * STEP_ITEMS, STEP_ITEMS).save(folder / "plan.npz")
    (folder / "logs").mkdir()
    (folder / "heartbeats").mkdir()
    spec = StreamSpec(str(folder / "plan.npz"), str(folder / "tokens"), STEPS, CAPACITY, "token")
    specs = {str(n): spec for n in range(ROUNDS)}
    TorchTrainer(
        worker,
        train_loop_config={"folder": str(folder), "plan": spec.plan, "tokens": spec.tokens, "hidden": hidden},
        torch_config=TorchConfig(backend="gloo", timeout_s=600),
        scaling_config=ray.train.ScalingConfig(num_workers=WORLD_SIZE, resources_per_worker={"CPU": 1}),
        datasets={name: step_spans(spec) for name in specs},
        dataset_config=RankShares(specs),
        run_config=ray.train.RunConfig(name=f"overhead-{time.time_ns()}", storage_path=str(folder / "ray")),
    ).fit()
    return json.loads((folder / "seconds.json").read_text())  # type: ignore[no-any-return]


def main(argv: list[str] | None = None) -> None:
    say("two workers, five turns of 12 steps each way")
    with tempfile.TemporaryDirectory() as place, connected(WORLD_SIZE + 4):
        seconds = run(Path(place), hidden=128)
    ours, bare = ([median(turn) for turn in seconds[name]] for name in ("ours", "bare"))
    ratio = median(a / b for a, b in zip(ours, bare, strict=True))
    figures = {
        "ratio": round(ratio, 4),
        "step_s": {"ours": round(median(ours), 4), "bare": round(median(bare), 4)},
        "data_wait_share": round(sum(seconds["waits"]) / sum(sum(turn) for turn in seconds["ours"]), 5),
        "turns": [round(a / b, 4) for a, b in zip(ours, bare, strict=True)],
    }
    write_result_file("loop_overhead", figures, {"ratio": f"<= {GOAL}", "step_s": ">= 0.2"}, ratio <= GOAL and median(bare) >= 0.2)


if __name__ == "__main__":
    door(main)
