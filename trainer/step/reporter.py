"""Rank 0's metrics: to a file, to TensorBoard, and the latest to the driver."""

import importlib.util
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.network.flops import peak_flops
from trainer.step.loop import Metrics
from trainer.store.stages import write_json


class Reporter:
    """Rank 0's metrics: every log_every_steps to metrics.jsonl and TensorBoard, and the latest to progress.json for the driver."""

    def __init__(self, settings: WorkerSettings, job: Job, folder: Path, first_step: int) -> None:
        self._job, self._every = job, settings.trainer.log_every_steps
        path = folder / "metrics.jsonl"
        kept = _lines_before(first_step, path)
        self._file = path.open("w")
        self._file.writelines(f"{line}\n" for line in kept)
        self._board = _board(Path(settings.run_folder) / "tensorboard" / f"{job.label.split(':')[0].replace('/', '-of-')}-{job.key[:6]}")
        self._progress = Path(settings.run_folder) / "progress.json"
        self._written = 0.0
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._peak = peak * torch.distributed.get_world_size() if peak else None

    def step(self, metrics: Metrics) -> None:
        if self._peak:  # known chips only
            metrics = {**metrics, "mfu": metrics["flops_per_s"] / self._peak}
        with suppress(OSError):  # a full disk: lines are lost, what is trained is not
            self._write(metrics)

    def _write(self, metrics: Metrics) -> None:
        last = metrics["step"] + 1 == self._job.num_steps
        if last or metrics["step"] % self._every == 0:
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()  # a line that a killed process left unwritten would be missing for good
            for name, value in metrics.items():
                if name != "time" and self._board:
                    self._board.add_scalar(name, value, metrics["step"])
        if last or time.monotonic() - self._written > 0.5:
            write_json(self._progress, {"key": self._job.key, "steps": self._job.num_steps, **metrics}, durable=False)
            self._written = time.monotonic()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
        if self._board:
            self._board.close()


def _board(folder: Path) -> Any:
    """None where TensorBoard is not installed, as on a machine that only measures; metrics.jsonl has the same numbers."""
    if not importlib.util.find_spec("tensorboard"):
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))  # type: ignore[no-untyped-call]


def _lines_before(first_step: int, path: Path) -> list[str]:
    """Metrics of an earlier try that still hold; its last line may be half written."""
    if not first_step or not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if json.loads(line)["step"] < first_step]
