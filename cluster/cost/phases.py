"""What a run takes beside its optimiser steps: workers that start, weights that are read, saved and exported, the exam. Modelled, at a storage's rate.

What is moved is counted (python -m benchmarks scale_load and scale_export, trainer/store/checkpoint.py): each weight is read once a stage (4 bytes, fp32), by
the rank that keeps it; each rank writes its own part of it (4 bytes) and of hf/ (2 bytes; 4 in fp32). How fast storage is, is assumed
unless `--storage` or preflight tells; what is marked so below is assumed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cluster.cost.chips import Hardware
from cluster.cost.memory import SetUp, trained_share
from cluster.cost.model_shape import ModelShape
from data.ground.engines import engines_at_once, gpus_of_engine

FILE = "storage.json"
"""Of a run folder: what preflight measured."""
_START_S = 90.0  # worker group, imports, first kernels; once, for one group trains all stages: assumed
_ENGINE_S = 15.0  # of every stage: an engine is built, its first steps are slower: assumed
_BUFFER_BYTES_PER_S = 20e9  # a rank's copy of weights and moments into host memory, which training waits for: PCIe, assumed
_EXAM_START_S = 120.0  # vLLM's first start, kernels captured: assumed
_PROMPT_TOKENS, _ANSWER_TOKENS = 435, 12  # half the questions alone (60), half after three passages (810): assumed
_AT_ONCE = 256  # answers that an engine decodes together: assumed
_OF_HBM = 0.6  # of the memory's rate, while decoding: assumed


@dataclass(frozen=True)
class Phases:
    """Seconds of a whole run."""

    start: float
    load: float
    teaching: float
    """What stages read before their first step: teachers, and items that say which weights matter."""
    training: float
    saving: float
    """The stages' weights, and what training waits for while checkpoints are copied."""
    export: float
    exam: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def beside(self) -> float:
        """What is neither training, teaching nor exam."""
        return self.start + self.load + self.saving + self.export


@dataclass(frozen=True)
class Asked:
    """What of an experiment decides its exam."""

    models: int = 0
    """Arms, the base among them; 0: no exam."""
    questions: int = 0
    gpus: int | None = None
    """exam.gpus."""


def storage_rate(hardware: Hardware, processes: int) -> float:
    """Bytes a second of so many readers or writers together."""
    return min(hardware.storage_bytes_per_s, processes * hardware.process_bytes_per_s)


def phases(
    shape: ModelShape,
    set_up: SetUp,
    hardware: Hardware,
    training: list[float],
    every_s: float | None,
    asked: Asked,
    fp32: bool = False,
    reading: Sequence[float] = (),
) -> Phases:
    """`training`: seconds of each stage's steps; `every_s`: between checkpoints (None: none); `reading`: seconds of each pass before a stage."""
    size, wide, stages = float(shape.parameters), 4 if fp32 else 2, len(training)
    rate, trained = storage_rate(hardware, hardware.num_gpus), trained_share(shape, set_up)
    start = _START_S + _ENGINE_S * stages if hardware.chip else 0.0
    buffer = 12 * trained * size / hardware.num_gpus / _BUFFER_BYTES_PER_S
    apart = max(every_s or 0.0, 12 * trained * size / rate)  # a save that takes longer than the interval stretches it
    checkpoints = sum(int(seconds / apart) for seconds in training) if every_s else 0
    return Phases(
        start,
        stages * 4 * size / rate,
        sum(reading)
        + len(reading) * (4 * size / rate + (_ENGINE_S if hardware.chip else 0.0)),  # an engine of its own with the start's weights
        sum(training),
        stages * 4 * size / rate + checkpoints * buffer,
        stages * wide * size / rate,
        exam_s(shape, hardware, asked) if hardware.chip else 0.0,
    )


def exam_s(shape: ModelShape, hardware: Hardware, asked: Asked) -> float:
    """Engines side by side on all GPUs, the models dealt out; each takes the next one's weights. A roofline: prompts by FLOPs, answers by memory."""
    chip = hardware.chip
    if not asked.models or chip is None:
        return 0.0
    weights, per_node = 2.0 * shape.parameters, min(hardware.num_gpus, hardware.gpus_per_node)
    gpus = asked.gpus or gpus_of_engine(weights, chip.memory_bytes, per_node)
    nodes = [per_node] * (hardware.num_gpus // per_node) + [hardware.num_gpus % per_node]
    engines = engines_at_once(gpus, nodes, asked.models)
    reading = engines * weights / storage_rate(hardware, engines * gpus)
    prompts = 2.0 * shape.product_parameters * asked.questions * _PROMPT_TOKENS / (chip.efficiency * chip.peak_flops * gpus)
    answers = -(-asked.questions // _AT_ONCE) * _ANSWER_TOKENS * weights / (_OF_HBM * chip.hbm_bytes_per_s * gpus)
    return _EXAM_START_S + -(-asked.models // engines) * (reading + prompts + answers)


def with_storage(hardware: Hardware, run_folder: Path, told_gb_per_s: float | None = None) -> Hardware:
    """With the storage's rate as told, else as preflight measured it for this run, else as assumed."""
    if told_gb_per_s:
        return replace(hardware, storage_bytes_per_s=told_gb_per_s * 1e9, storage_told="as told")
    path = run_folder / FILE
    if not path.is_file():
        return hardware
    found = json.loads(path.read_text())
    rates = {name: float(found[name]) for name in ("storage_bytes_per_s", "process_bytes_per_s")}
    return replace(hardware, **rates, storage_told="as preflight measured")  # type: ignore[arg-type]
