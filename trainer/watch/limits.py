"""How long the phases of one stage may last: what its settings allow, and what the bytes take at the rate that storage has shown (trainer/store/storage.py)."""

from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import Any

from trainer.config import TrainerConfig
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore
from trainer.store.storage import READING, WRITING
from trainer.watch.heartbeat import Heartbeat

_STATES = 12
"""Bytes a weight of a checkpoint: fp32 weights and AdamW's moments."""
_LEFT = 4 + 2
"""Of what a stage leaves: fp32 weights, and hf/ in bf16 at the most usual."""


class Limits:
    def __init__(self, settings: WorkerSettings, store: StageStore, job: Job, num_ranks: int, first_step: int) -> None:
        self._watch = settings.trainer.watch
        self._trainer = settings.trainer
        self._num_ranks = num_ranks
        self._to_load = _to_load(settings, store, job, first_step) / num_ranks
        if settings.trainer.local_copies and not job.parent:  # the whole by one process of a node
            self._to_load *= num_ranks
        self._to_save = 0.0

    def know(self, shapes: dict[str, list[int]]) -> list[str]:
        """The model's parameters, once they are there; lines for people where saving them takes long."""
        weights = sum(prod(shape) for shape in shapes.values())
        self._to_save = (_STATES + _LEFT) * weights / self._num_ranks  # a stage's end may wait for its last checkpoint
        line = WRITING.in_words("what a stage saves at its end", self._watch.save_s, self._to_save)
        return [line] if line else []

    @property
    def load_s(self) -> float:
        return READING.limit_s(self._watch.start_s, self._to_load)

    @property
    def save_s(self) -> float:
        return WRITING.limit_s(self._watch.save_s, self._to_save)

    @property
    def longest_s(self) -> float:
        """That one rank may wait for another."""
        return self.load_s + self.save_s

    @property
    def trainer(self) -> TrainerConfig:
        """The settings with these limits in them."""
        return self._trainer.model_copy(update={"watch": self._watch.model_copy(update={"save_s": self.save_s})})

    def loading(self, beat: Heartbeat) -> AbstractContextManager[None]:
        return READING.followed(beat.extend, self._watch.start_s, self._to_load)

    def saving(self, beat: Heartbeat) -> AbstractContextManager[None]:
        return WRITING.followed(beat.extend, self._watch.save_s, self._to_save)

    def in_words(self) -> list[str]:
        line = READING.in_words("loading weights", self._watch.start_s, self._to_load)
        return [line] if line else []


def _to_load(settings: WorkerSettings, store: StageStore, job: Job, first_step: int) -> float:
    """Bytes that all ranks read together."""
    size = float(sum(_listed(saved.manifest) for saved in checkpoints(store.folder(job.key)) if first_step and saved.step == first_step))
    if job.parent is None and settings.parent_stage is None:
        return size + sum(file.stat().st_size for file in Path(settings.model_folder).glob("*.safetensors"))
    if job.parent is None:
        return size + sum(file.stat().st_size for file in (Path(settings.parent_stage or "") / "weights").glob("*.safetensors"))
    return size + _listed(store.manifest(job.parent) or {}, "weights/")


def _listed(manifest: dict[str, Any], below: str = "") -> int:
    return sum(int(facts["bytes"]) for name, facts in manifest.get("files", {}).items() if name.startswith(below))
