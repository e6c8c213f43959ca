"""Every way to run a workload on some hardware, priced: what fits, what is missing where it does not, what it takes; one recommended."""

from dataclasses import dataclass, field, replace
from typing import Literal

from cluster.cost.chips import GIB, Hardware
from cluster.cost.memory import Disk, GpuMemory, HostMemory, SetUp, disk, gpu_memory, host_memory, trained_share
from cluster.cost.model_shape import ModelShape
from cluster.cost.phases import Asked, Phases, phases
from cluster.cost.speed import StepLoad, break_even_tokens, reading_s, step_time
from cluster.workload import StageWork, Workload
from data.rows.important import AT_ONCE

_ROW_TOKENS = (2048, 4096, 8192, 16384)
USABLE = 0.96
"""Share of a GPU's memory that a plan may fill: the activations' formula is good to 10 %."""
_WHERE = {"GPU": "GPU memory", "host": "host memory a node, while saving or loading", "disk": "disk"}
_RANK = 16  # of the LoRA that is offered beside full fine-tuning


@dataclass(frozen=True)
class Offer:
    """One set-up on so many GPUs. Times are modelled."""

    set_up: SetUp
    hardware: Hardware
    gpu: GpuMemory
    host: HostMemory
    disk: Disk
    lacks: dict[str, tuple[float, float]]
    """Bytes that are needed and that are there, of what there is too little of: "GPU", "host", "disk"; empty: it fits."""
    tokens_per_micro_step: float
    """Per GPU."""
    tokens_per_step: float
    """Per GPU."""
    break_even: float
    phases: Phases | None
    """Of the whole run, the exam too; None: nobody knows the speed of these CPUs yet."""
    tokens_per_s: float | None
    """All GPUs, while training."""
    from_file: bool = False
    """As the experiment's file says."""
    adapter_in_file: bool = False

    @property
    def seconds(self) -> float | None:
        return self.phases.total if self.phases else None

    @property
    def fits(self) -> bool:
        return not self.lacks

    @property
    def problems(self) -> list[str]:
        """What it lacks, for people."""
        return [
            f"{_WHERE[what]}: {(needed - there) / GIB:,.1f} GiB missing (needs {needed / GIB:,.1f}, has {there / GIB:,.1f})"
            for what, (needed, there) in self.lacks.items()
        ]

    @property
    def can_be_chosen(self) -> bool:
        return self.fits and self.set_up.available

    @property
    def hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600

    def cost(self, price: float) -> float | None:
        """At `price` per GPU and hour."""
        return None if self.hours is None else self.hours * self.hardware.num_gpus * price

    def overrides(self) -> list[str]:
        """What to put behind the experiment on the command line."""
        s = self.set_up
        return [
            f"trainer.num_workers={self.hardware.num_gpus}", f"trainer.zero_stage={s.zero_stage}", f"trainer.row_tokens={s.row_tokens}",
            f"trainer.gradient_checkpointing={str(s.recompute).lower()}", f"trainer.offload_optimizer={str(s.offload).lower()}",
            *([f"trainer.adapter.r={s.adapter}"] if s.adapter and not self.adapter_in_file else []),
        ]  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What is to be planned: a model, a workload, and what of the trainer's settings stays."""

    shape: ModelShape
    workload: Workload
    file: SetUp
    keep: int = 2
    """trainer.checkpoint.keep."""
    fp32: bool = False
    every_s: float | None = 600.0
    """Between checkpoints; None: none by the clock."""
    asked: Asked = field(default_factory=Asked)
    shapes: Literal["auto", "static", "exact"] = "auto"
    """trainer.shapes."""
    packing: Literal["auto", "packed", "one_item"] = "auto"
    """trainer.packing."""
    teacher_fp32: bool = True
    """trainer.teacher_precision."""

    @property
    def teachers(self) -> int:
        """Stages that a teacher reads for first."""
        return sum(bool(stage.before.taught) for stage in self.workload.stages)

    def one_item(self, hardware: Hardware) -> bool:
        """Whether rows will hold one item each: workers find it out by trying (trainer/step/isolation.py), this is what is known before.

        On GPUs the kernels of the lock start a state anew with each item, but Mamba-1's scan has none that does.
        """
        state_space = self.shape.inner_size > 0 and (hardware.chip is None or self.shape.scans)
        return self.packing == "one_item" or (self.packing == "auto" and state_space)

    def load(self, stage: StageWork, row_tokens: int, hardware: Hardware) -> StepLoad:
        """Of a step of this stage, packed and padded as the trainer will there (trainer/jobs/shapes.py)."""
        one_item = self.one_item(hardware)
        static = self.shapes == "static" or (self.shapes == "auto" and hardware.chip is not None and not one_item)
        return stage.load(hardware.num_gpus, row_tokens, static, one_item)


def offer(question: Question, set_up: SetUp, hardware: Hardware) -> Offer:
    """One set-up, priced."""
    shape, work = question.shape, question.workload
    gpu, host, on_disk = _memory(question, set_up, hardware)
    loads = [question.load(stage, set_up.row_tokens, hardware) for stage in work.stages]
    took, timed = None, hardware.in_precision(question.fp32)
    if hardware.chip is not None or hardware.seconds_per_flop is not None:
        steps = [stage.steps * step_time(shape, set_up, load, timed).total for stage, load in zip(work.stages, loads, strict=True)]
        took = phases(
            shape, set_up, hardware, steps, question.every_s, question.asked, question.fp32, _readings(question, set_up, hardware)
        )
    micro_steps = sum(stage.steps * load.micro_steps for stage, load in zip(work.stages, loads, strict=True))
    attended = sum(stage.attended * stage.tokens for stage in work.stages) / work.tokens
    # A padded token hides communication as a real one does: of real ones it takes fewer.
    fill = work.tokens / sum(stage.tokens / load.fill for stage, load in zip(work.stages, loads, strict=True))
    known = hardware.chip is not None
    return Offer(
        set_up, hardware, gpu, host, on_disk, _lacks(gpu, host, on_disk, hardware),
        work.tokens / hardware.num_gpus / micro_steps, work.tokens / hardware.num_gpus / work.steps,
        fill * break_even_tokens(shape, set_up, timed, attended) if known else 0.0,
        took, work.tokens / took.training if took else None, set_up == question.file, bool(question.file.adapter),
    )  # fmt: skip


def _readings(question: Question, set_up: SetUp, hardware: Hardware) -> list[float]:
    """Seconds of each pass before a stage's first step."""
    shape, found = question.shape, []
    for stage in question.workload.stages:
        before = stage.before
        if before.taught:
            as_read = hardware.in_precision(question.teacher_fp32)
            found.append(reading_s(shape, set_up.zero_stage, set_up.row_tokens, before.taught, stage.attended, as_read, before.passes))
            found += [0.0] * (before.teachers - 1)  # their weights and engines, which are counted for each pass
        if before.held:
            steps = -(-before.held_items // AT_ONCE)
            of_rank = before.held / before.held_items * -(-AT_ONCE // hardware.num_gpus)
            load = StepLoad(of_rank, 1, before.held / before.held_items)
            found.append(steps * step_time(shape, set_up, load, hardware.in_precision(question.fp32)).total)
    return found


def _memory(question: Question, set_up: SetUp, hardware: Hardware) -> tuple[GpuMemory, HostMemory, Disk]:
    shape = question.shape
    gpu = gpu_memory(shape, set_up, hardware.num_gpus, question.fp32)
    host = host_memory(shape, set_up, hardware)
    if hardware.chip is None:  # the ranks' own memory is host memory
        host = replace(host, states=host.states + min(hardware.num_gpus, hardware.gpus_per_node) * gpu.total)
    return gpu, host, disk(shape, len(question.workload.stages), question.keep, question.fp32, trained_share(shape, set_up))


def _lacks(gpu: GpuMemory, host: HostMemory, on_disk: Disk, hardware: Hardware) -> dict[str, tuple[float, float]]:
    found = {"host": (host.peak, hardware.host_bytes)}
    if hardware.chip is not None:
        found = {"GPU": (gpu.total, USABLE * hardware.chip.memory_bytes), **found}
    if hardware.disk_bytes is not None:
        found["disk"] = (on_disk.peak, hardware.disk_bytes)
    return {what: (needed, there) for what, (needed, there) in found.items() if needed > there}


def set_ups(question: Question, hardware: Hardware) -> list[SetUp]:
    """All that are worth asking about, without those that cannot be set on this hardware."""
    on_gpu = hardware.chip is not None
    least = min(question.workload.longest, question.file.row_tokens)  # shorter rows would cut items that the file does not cut
    rows = sorted({*(row for row in _ROW_TOKENS if row >= least), question.file.row_tokens}) if on_gpu else [question.file.row_tokens]
    stages, held = (1, 2, 3) if hardware.num_gpus > 1 else (2, 3), question.file.held
    found = [
        SetUp(stage, row, recompute, offload, question.file.adapter, on_experts=question.file.on_experts, held=held)
        for stage in stages
        for offload in ((False, True) if on_gpu else (False,))
        for recompute in (False, True)
        for row in rows
    ]
    if on_gpu:  # so that it can be seen what they would buy
        most = 3 if hardware.num_gpus > 1 else 2
        found += [SetUp(most, row, True, adapter=0 if question.file.adapter else _RANK, held=held) for row in rows]
        found += [SetUp(most, row, True, compensated=True, held=held) for row in rows]
    return found if question.file in found else [*found, question.file]


def offers(question: Question, hardware: Hardware, for_best: bool = False) -> list[Offer]:
    """For every kind of set-up the row length that is fastest among those that fit; where none fits the one that lacks least.

    The file's own set-up is always there. `for_best`: none that `best` would not look at; their steps need not be packed, which is what costs.
    """
    kinds: dict[SetUp, list[Offer]] = {}
    for set_up in set_ups(question, hardware):
        if for_best and not (_choosable(question, set_up) and not _lacks(*_memory(question, set_up, hardware), hardware)):
            continue
        kinds.setdefault(replace(set_up, row_tokens=0), []).append(offer(question, set_up, hardware))
    chosen = []
    for members in kinds.values():
        best = min(members, key=_rank)
        chosen += [best, *(member for member in members if member.from_file and member is not best)]
    return chosen


def _choosable(question: Question, set_up: SetUp) -> bool:
    """What the trainer knows, with an adapter or without as the file says: what is learnt is another thing, so that choice is the user's."""
    return set_up.available and bool(set_up.adapter) == bool(question.file.adapter)


def _rank(one: Offer) -> tuple[bool, float, int]:
    """What fits before what does not; then the faster; then the shorter rows."""
    missing = max(0.0, one.gpu.total - (USABLE * one.hardware.chip.memory_bytes if one.hardware.chip else one.gpu.total))
    return (not one.fits, (one.seconds or 0.0) if one.fits else missing, one.set_up.row_tokens)


def best(found: list[Offer]) -> Offer | None:
    """The fastest that fits and that the trainer knows; among equals (within 2 %) the one with the fewest measures.

    With an adapter or without as the file says: what is learnt is another thing, so the choice is the user's.
    """
    able = [one for one in found if one.can_be_chosen and bool(one.set_up.adapter) == one.adapter_in_file]
    if not able:
        return None
    if able[0].seconds is None:  # CPUs of unknown speed: as the file says, if that fits
        return next((one for one in able if one.from_file), able[0])
    fastest = min(one.seconds or 0.0 for one in able)
    near = [one for one in able if (one.seconds or 0.0) <= 1.02 * fastest]
    return min(
        near, key=lambda one: (not one.from_file, one.set_up.offload, one.set_up.recompute, one.set_up.zero_stage, one.set_up.row_tokens)
    )


@dataclass(frozen=True)
class Advice:
    offers: list[Offer]
    """On all GPUs."""
    by_count: list[Offer]
    """The best set-up on all, half, a quarter, … of them, where one fits."""
    recommended: Offer | None


def advise(question: Question, hardware: Hardware) -> Advice:
    """Recommended is the number of GPUs with the least hours × cost: twice the GPUs must save 30 % of the time to be worth it."""
    every = offers(question, hardware)
    by_count = [found for found in [best(every)] if found]
    count = hardware.num_gpus // 2
    while count >= 1:
        fewer = best(offers(question, hardware.with_gpus(count), for_best=True))
        by_count += [fewer] if fewer else []
        count //= 2
    if not by_count or by_count[0].seconds is None:
        return Advice(every, by_count, by_count[0] if by_count else None)
    return Advice(every, by_count, min(by_count, key=lambda one: (one.hours or 0.0) * (one.cost(1.0) or 0.0)))
