"""A plan for people, in lines, and as plain values for JSON."""

from dataclasses import asdict, fields
from typing import Any

from cluster.chips import GIB, Hardware
from cluster.phases import storage_rate
from cluster.setups import Advice, Offer, Question

_NOT_YET = "not available in this version"


def in_lines(name: str, question: Question, hardware: Hardware, advice: Advice, price: float | None) -> list[str]:
    """What fits, in a table; what does not, with what is missing; fewer GPUs; the recommendation."""
    found = sorted(advice.offers, key=lambda one: (not one.set_up.available, one.seconds or 0.0))
    lines = _about(name, question, hardware)
    if fitting := [one for one in found if one.fits]:
        lines += ["", f"fits {hardware} (memory in GiB; * recommended, f as the file says; all times modelled):"]
        lines += _columns([_head(price), *(_row(one, advice, price) for one in fitting)])
    if lacking := [one for one in found if not one.fits]:
        lines += ["", "does not fit:"]
        lines += [f"{_marks(one, advice):2}{_named(one)}: {'; '.join(one.problems)}" for one in lacking]
    if len(advice.by_count) > 1 and hardware.chip:
        lines += ["", "fewer GPUs, each with its fastest set-up:"]
        lines += _columns([["", "GPUs", "GPU-hours", *_head(price)[1:]], *(_count_row(one, advice, price) for one in advice.by_count)])
    if chosen := advice.recommended:
        most = advice.by_count[0]
        lines += ["", f"recommended: {chosen.hardware}{_why(chosen, most)}", f"  {' '.join(chosen.overrides())}"]
        for one in [chosen] if chosen == most else [chosen, most]:
            lines += _phase_lines(one, len(question.workload.stages), price)
    return lines


def _why(chosen: Offer, most: Offer) -> str:
    """What fewer GPUs save and cost."""
    if chosen == most or chosen.hours is None or most.hours is None:
        return ""
    saved = 1 - (chosen.cost(1.0) or 0.0) / (most.cost(1.0) or 1.0)
    later = 60 * (chosen.hours - most.hours)
    told = f"{later:,.0f} minutes later" if later >= 1 else "as soon"
    return f", not {most.hardware.num_gpus}: it is done {told}, for {saved:.0%} less"


def _phase_lines(one: Offer, stages: int, price: float | None) -> list[str]:
    """Where the hours and the cost go."""
    if not (took := one.phases):
        return []
    hours = {field.name: getattr(took, field.name) / 3600 for field in fields(took)}
    parts = ", ".join(f"{name} {value:,.2f}" for name, value in hours.items())
    lines = [f"  {one.hardware}: {parts} hours"]
    if price:
        each = price * one.hardware.num_gpus
        lines.append(f"    cost: {', '.join(f'{name} {each * value:,.2f}' for name, value in hours.items())}")
    rate = storage_rate(one.hardware, one.hardware.num_gpus) / 1e9
    return [
        *lines,
        f"    beside training and exam: {took.beside / stages:,.0f} s a stage, with storage of {rate:,.1f} GB/s ({one.hardware.storage_told})",
    ]


def _about(name: str, question: Question, hardware: Hardware) -> list[str]:
    work = question.workload
    machines = f"{hardware}: {hardware.num_nodes} node(s) with {hardware.host_bytes / GIB:,.0f} GiB of host memory each"
    if hardware.num_nodes > 1:
        machines += f", {hardware.network_bytes_per_s * 8 / 1e9:,.0f} Gb/s a node"
    if hardware.disk_bytes is not None:
        machines += f", {hardware.disk_bytes / GIB:,.0f} GiB of storage"
    lines = [
        f"{name}: {question.shape.parameters / 1e9:,.2f} billion weights; {len(work.stages)} different stages, {work.steps:,} steps, "
        f"{work.tokens:,} tokens, {work.tokens / work.steps:,.0f} a step",
        f"  {work.origin}",
        machines,
    ]
    if hardware.chip is None and hardware.seconds_per_flop is None:
        lines.append("  how fast these CPUs are is not known: --measure tells")
    elif hardware.speed != 1.0 or hardware.seconds_per_flop:
        lines.append("  speed as --measure saw it here")
    return lines


def _named(one: Offer) -> str:
    return str(one.set_up) + ("" if one.set_up.available else f" ({_NOT_YET})")


def _marks(one: Offer, advice: Advice) -> str:
    return ("*" if one == advice.recommended else "") + ("f" if one.from_file else "")


def _head(price: float | None) -> list[str]:
    return ["", "GPU", "host", "disk", "tokens/GPU/micro-step", "break-even", "tokens/s", "hours", *(["cost"] if price else []), "set-up"]


def _row(one: Offer, advice: Advice, price: float | None) -> list[str]:
    gpu = f"{one.gpu.total / GIB:,.1f}" if one.hardware.chip else "–"
    cost = [_number(one.cost(price))] if price else []
    return [
        _marks(one, advice), gpu, f"{one.host.peak / GIB:,.0f}", f"{one.disk.peak / GIB:,.0f}", f"{one.tokens_per_micro_step:,.0f}",
        f"{one.break_even:,.0f}", _number(one.tokens_per_s), "?" if one.hours is None else f"{one.hours:,.2f}", *cost, _named(one),
    ]  # fmt: skip


def _count_row(one: Offer, advice: Advice, price: float | None) -> list[str]:
    _, *rest = _row(one, advice, price)
    return [
        "*" if one == advice.recommended else "",
        str(one.hardware.num_gpus),
        "?" if one.hours is None else f"{one.hours * one.hardware.num_gpus:,.1f}",
        *rest,
    ]


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
