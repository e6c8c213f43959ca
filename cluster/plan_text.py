"""A plan for people, in lines, and as plain values for JSON."""

from dataclasses import asdict, fields
from textwrap import wrap
from typing import Any

from cluster.cost.chips import GIB, Hardware
from cluster.cost.phases import Phases, storage_rate
from cluster.setups import USABLE, Advice, Offer, Question

_WIDTH = 80


def in_lines(name: str, question: Question, hardware: Hardware, advice: Advice, price: float | None) -> list[str]:
    """What fits, in a table; what does not, with what is missing; fewer GPUs; the recommendation. At most 80 columns wide."""
    found = sorted(advice.offers, key=lambda one: (not one.set_up.available, one.seconds or 0.0))
    lines = _about(name, question, hardware)
    if fitting := [one for one in found if one.fits]:
        lines += ["", f"fits {hardware} (all times modelled):"]
        lines += _columns([_head(price), *(_row(one, advice, price) for one in fitting)])
    if lacking := [one for one in found if not one.fits]:
        lines += ["", f"does not fit, GiB missing of {_there(hardware)}:"]
        lines += _columns([["", "GPU", "host", "disk", *_SET_UP], *(_lacking_row(one, advice) for one in lacking)])
    if len(advice.by_count) > 1 and hardware.chip:
        lines += ["", "fewer GPUs, each with its fastest set-up:"]
        lines += _columns([_count_head(price), *(_count_row(one, advice, price) for one in advice.by_count)])
    lines += ["", *_wrapped(_legend(found, price), "  ")]
    if chosen := advice.recommended:
        most = advice.by_count[0]
        lines += ["", *_wrapped(f"recommended: {chosen.hardware}{_why(chosen, most)}", "  ")]
        lines += [f"  {part}" for part in _continued(chosen.overrides())]
        if hardware.chip:
            lines.append(f"  {chosen.tokens_per_micro_step:,.0f} tokens a GPU and micro-step, break-even at {chosen.break_even:,.0f}")
        if question.teachers:
            lines += _wrapped(_teacher(question, hardware), "  ")
        lines += _phase_lines([chosen] if chosen == most else [chosen, most], len(question.workload.stages), price)
    return lines


def _teacher(question: Question, hardware: Hardware) -> str:
    """trainer/teaching/reading.py builds its model without an adapter, in fp32 unless the file says otherwise; only ZeRO-3 shares it out."""
    wide, kind = (4, "fp32") if question.teacher_fp32 else (2, "bf16")
    size = wide * question.shape.parameters / GIB / (hardware.num_gpus if question.file.zero_stage == 3 else 1)
    room = USABLE * hardware.chip.memory_bytes / GIB if hardware.chip else hardware.host_bytes / GIB
    there = "" if size < room else f", which holds {room:,.1f}: it will not fit"
    return f"  before {question.teachers} stages a teacher reads, counted as of the same size: {size:,.1f} GiB of {kind} weights on each {'GPU' if hardware.chip else 'worker'}{there}"


def _there(hardware: Hardware) -> str:
    """What a set-up may fill."""
    parts = [f"{USABLE * hardware.chip.memory_bytes / GIB:,.1f} a GPU"] if hardware.chip else []
    parts.append(f"{hardware.host_bytes / GIB:,.0f} a node")
    return ", ".join(parts if hardware.disk_bytes is None else [*parts, f"{hardware.disk_bytes / GIB:,.0f} on the storage"])


def _legend(found: list[Offer], price: float | None) -> str:
    """What the tables' marks and heads mean."""
    parts = ["* recommended", "f as the file says"]
    parts += ["- not in this version"] if not all(one.set_up.available for one in found) else []
    parts += ["GPU, host (of a node), disk: GiB at their worst", "tok/s: of all, while training", "h: hours of the whole run"]
    parts += ["cost: of it"] if price else []
    return "; ".join([*parts, "ckpt: gradient checkpointing; rows: tokens of a row; host: states in its memory"])


def _wrapped(line: str, indent: str) -> list[str]:
    return wrap(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _continued(words: list[str]) -> list[str]:
    """To be copied into a shell: lines that end in a backslash where they go on."""
    lines = wrap(" ".join(words), _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _why(chosen: Offer, most: Offer) -> str:
    """What fewer GPUs save and cost."""
    if chosen == most or chosen.hours is None or most.hours is None:
        return ""
    saved = 1 - (chosen.cost(1.0) or 0.0) / (most.cost(1.0) or 1.0)
    later = 60 * (chosen.hours - most.hours)
    told = f"{later:,.0f} minutes later" if later >= 1 else "as soon"
    return f", not {most.hardware.num_gpus}: it is done {told}, for {saved:.0%} less"


def _phase_lines(compared: list[Offer], stages: int, price: float | None) -> list[str]:
    """Where the hours and the cost go."""
    rows = []
    shown = [
        field.name for field in fields(Phases) if field.name != "teaching" or any(one.phases and one.phases.teaching for one in compared)
    ]
    for one in compared:
        if took := one.phases:
            each = (price or 0.0) * one.hardware.num_gpus
            hours = [getattr(took, name) / 3600 for name in shown]
            rate = storage_rate(one.hardware, one.hardware.num_gpus) / 1e9
            beside = f"{took.beside / stages:,.0f} s"
            rows.append([str(one.hardware), "hours", *map(_short, hours), f"{rate:,.1f}", beside])
            rows += [["", "cost", *(_short(each * value) for value in hours), "", ""]] if price else []
    if not rows:
        return []
    head = ["", "", *shown, "GB/s", "a stage"]
    others = "training, teaching and exam" if "teaching" in shown else "training and exam"
    told = f"  a stage: all but {others}; GB/s: of the storage ({compared[0].hardware.storage_told})"
    return ["", *(f"  {line}".rstrip() for line in _columns([head, *rows])), *_wrapped(told, "    ")]


def _about(name: str, question: Question, hardware: Hardware) -> list[str]:
    work = question.workload
    machines = f"{hardware}: {hardware.num_nodes} node(s) with {hardware.host_bytes / GIB:,.0f} GiB of host memory each"
    if hardware.num_nodes > 1:
        machines += f", {hardware.network_bytes_per_s * 8 / 1e9:,.0f} Gb/s a node"
    if hardware.disk_bytes is not None:
        machines += f", {hardware.disk_bytes / GIB:,.0f} GiB of storage"
    what = f"{name}: {question.shape.parameters / 1e9:,.2f} billion weights; {len(work.stages)} different stages, {work.steps:,} steps, "
    what += f"{work.tokens:,} tokens, {work.tokens / work.steps:,.0f} a step"
    lines = [*_wrapped(what, "  "), *_wrapped(f"  {work.origin}", "  "), *_wrapped(machines, "  ")]
    if hardware.chip is None and hardware.seconds_per_flop is None:
        lines.append("  how fast these CPUs are is not known: --measure tells")
    elif hardware.speed != 1.0 or hardware.seconds_per_flop:
        lines.append("  speed as --measure saw it here")
    return lines


def _marks(one: Offer, advice: Advice) -> str:
    return ("*" if one == advice.recommended else "") + ("f" if one.from_file else "") + ("" if one.set_up.available else "-")


def _set_up(one: Offer) -> list[str]:
    s = one.set_up
    states = f"LoRA r={s.adapter}" if s.adapter else "bf16, Kahan" if s.compensated else "fp32"
    return [str(s.zero_stage), "yes" if s.recompute else "no", f"{s.row_tokens:,}", states + (" host" if s.offload else "")]


_SET_UP = ("ZeRO", "ckpt", "rows", "states")


def _gpu(one: Offer) -> str:
    return f"{one.gpu.total / GIB:,.1f}" if one.hardware.chip else "–"


def _times(one: Offer, price: float | None) -> list[str]:
    cost = [_number(one.cost(price))] if price else []
    return [_number(one.tokens_per_s), "?" if one.hours is None else _short(one.hours), *cost]


def _head(price: float | None) -> list[str]:
    return ["", "GPU", "host", "disk", "tok/s", "h", *(["cost"] if price else []), *_SET_UP]


def _row(one: Offer, advice: Advice, price: float | None) -> list[str]:
    memory = [_gpu(one), f"{one.host.peak / GIB:,.0f}", f"{one.disk.peak / GIB:,.0f}"]
    return [_marks(one, advice), *memory, *_times(one, price), *_set_up(one)]


def _lacking_row(one: Offer, advice: Advice) -> list[str]:
    missing = {what: f"{(needed - there) / GIB:,.1f}" for what, (needed, there) in one.lacks.items()}
    return [_marks(one, advice), *(missing.get(what, "") for what in ("GPU", "host", "disk")), *_set_up(one)]


def _count_head(price: float | None) -> list[str]:
    return ["", "GPUs", "GPU-h", "GPU", "host", "tok/s", "h", *(["cost"] if price else []), *_SET_UP]


def _count_row(one: Offer, advice: Advice, price: float | None) -> list[str]:
    all_hours = "?" if one.hours is None else f"{one.hours * one.hardware.num_gpus:,.1f}"
    memory = [_gpu(one), f"{one.host.peak / GIB:,.0f}"]
    return ["*" if one == advice.recommended else "", str(one.hardware.num_gpus), all_hours, *memory, *_times(one, price), *_set_up(one)]


def _short(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _columns(rows: list[list[str]]) -> list[str]:
    """Aligned: marks and the last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{row[0]:{widths[0]}} "
        + "  ".join(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True))
        + f"  {row[-1]}"
        for row in rows
    ]


def as_dict(question: Question, hardware: Hardware, advice: Advice, price: float | None) -> dict[str, Any]:
    """Plain values, memory in GiB."""
    return {
        "modelled": True,
        "hardware": asdict(hardware),
        "parameters": question.shape.parameters,
        "workload": {"stages": len(question.workload.stages), "steps": question.workload.steps, "tokens": question.workload.tokens},
        "origin": question.workload.origin,
        "set_ups": [offer_dict(one, price) for one in advice.offers],
        "by_count": [offer_dict(one, price) for one in advice.by_count],
        "recommended": offer_dict(advice.recommended, price) if advice.recommended else None,
    }


def offer_dict(one: Offer, price: float | None) -> dict[str, Any]:
    """One set-up."""
    gpu = {name: round(getattr(one.gpu, name) / GIB, 2) for name in ("kept", "activations", "logits", "buffers", "loading", "total")}
    host = {
        name: round(getattr(one.host, name) / GIB, 1) for name in ("processes", "states", "kept", "loading", "resuming", "saving", "peak")
    }
    cost = None if price is None else one.cost(price)
    return {
        "set_up": str(one.set_up),
        "num_gpus": one.hardware.num_gpus,
        "available": one.set_up.available,
        "fits": one.fits,
        "problems": one.problems,
        "gpu_gib": gpu,
        "host_gib": host,
        "disk_gib": round(one.disk.peak / GIB, 1),
        "tokens_per_gpu_and_micro_step": round(one.tokens_per_micro_step),
        "tokens_per_gpu_and_step": round(one.tokens_per_step),
        "break_even_tokens": round(one.break_even),
        "tokens_per_s": one.tokens_per_s and round(one.tokens_per_s, 1),
        "tokens_per_s_per_gpu": one.tokens_per_s and round(one.tokens_per_s / one.hardware.num_gpus, 1),
        "hours": one.hours and round(one.hours, 3),
        "phases": phases_dict(one, price),
        "cost": cost and round(cost, 2),
        "overrides": one.overrides(),
    }


def phases_dict(one: Offer, price: float | None) -> dict[str, Any] | None:
    """Hours of each phase, and what they cost; the storage's rate they were reckoned with."""
    if not (took := one.phases):
        return None
    hours = {field.name: getattr(took, field.name) / 3600 for field in fields(took)}
    each = None if price is None else price * one.hardware.num_gpus
    return {
        "hours": {name: round(value, 4) for name, value in hours.items()},
        "cost": None if each is None else {name: round(each * value, 2) for name, value in hours.items()},
        "storage_bytes_per_s": storage_rate(one.hardware, one.hardware.num_gpus),
        "storage": one.hardware.storage_told,
    }
