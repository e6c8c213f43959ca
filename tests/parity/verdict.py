"""What becomes of a cell: equal, within bf16's bound, refused, or DIFFERENT; and where the bounds come from.

A rounding errs by at most u: 2⁻²⁴ of a number in fp32, 2⁻⁸ in bf16. In these networks of two layers a gradient goes through about 60 roundings in
sequence, forward and back (weights, norms, products, rotations, softmax, activations, residuals); errors of either sign add like √60, and a softmax
whose logits spread by 1 to 2 takes up to four times what its logits err by. So ε = 4 √60 u for one parameter's gradient in its norm, and half of
that for all together, where few parameters have the worst. In fp32 u is √64 times larger: there sums round too, of up to 4,096 terms, in blocks.
At most half of such an error lies along the gradient and changes its norm. A first loss has the forward pass's half of the roundings, in logits that
are a fifth of it, and is the mean of a hundred targets or more; the sums of these means round in fp32.
HRA rounds each adapted weight four times more, once for each reflection: 80 roundings more where up to ten such layers follow one another, forth and back.
Nothing else is allowed to differ: buffers, start weights and frozen ones are the oracle's to the bit, and AdamW's step follows from its moments.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from tests.helpers.networks import same_bits
from tests.parity import items, oracle
from tests.parity.cells import Cell

ROUNDING = {"fp32": 2.0**-24, "bf16": 2.0**-8}
IN_SEQUENCE = 60
MORE_IN_SEQUENCE = {"hra": 80}
SOFTMAX = 4.0
SUMS_IN_FP32 = 8.0
ADAM_EPSILON = 1e-8
"""torch's default, which the trainer leaves."""


@dataclass(frozen=True)
class Bounds:
    """Relative."""

    loss: float
    norm: float
    gradient: float
    """Of all parameters together."""
    parameter: float
    """Of one parameter's gradient; of one that is small (below a hundredth of all), of a hundredth of all."""


def bounds(precision: str, trained: str = "all") -> Bounds:
    unit = ROUNDING[precision] * (SUMS_IN_FP32 if precision == "fp32" else 1.0)
    roundings = IN_SEQUENCE + MORE_IN_SEQUENCE.get(trained, 0)
    epsilon = SOFTMAX * sqrt(roundings) * unit
    loss = SOFTMAX * sqrt(roundings / 2) * unit / 5 / sqrt(100) + 4 * ROUNDING["fp32"]
    return Bounds(loss, epsilon / 4, epsilon / 2, epsilon)


@dataclass(frozen=True)
class Verdict:
    verdict: str
    """equal, bounded, refused, DIFFERENT or error."""
    why: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    """How far off, relative: loss, norm, gradient, parameter."""
    told: dict[str, Any] = field(default_factory=dict)
    """attention, one_item; losses and gradients (checksums by parameter) of each rank, to be held against other stages."""


def judge(cell: Cell, taken: dict[str, Any], wanted: dict[str, Any]) -> Verdict:
    """`taken`: product.take_step's; `wanted`: the oracle's."""
    told = {key: taken[key] for key in ("attention", "one_item", "losses", "gradients")}
    if "failed" in wanted:
        return Verdict("DIFFERENT", f"trained, and the oracle says: {wanted['failed']}", told=told)
    allowed, figures, faults = bounds(cell.precision, cell.trained), {}, _bits(taken, wanted)
    figures["loss"] = abs(sum(taken["losses"]) / wanted["loss"] - 1)
    figures["norm"] = abs(taken["norm"] / wanted["norm"] - 1)
    clipped = min(1.0, oracle.CONFIG.clip / wanted["norm"])
    of_all = clipped * wanted["norm"]
    off: dict[str, float] = {}  # by parameter, the distance of its gradient
    for name, gradient in wanted["gradient"].items():
        off[name] = float((_gradient(taken, name) - clipped * gradient).norm())
    scales = {name: max(clipped * float(gradient.norm()), of_all / 100) for name, gradient in wanted["gradient"].items()}
    worst = max(off, key=lambda name: off[name] / scales[name])
    figures["gradient"] = sqrt(sum(distance**2 for distance in off.values())) / of_all
    figures["parameter"] = off[worst] / scales[worst]
    for key, value in figures.items():
        if not value <= getattr(allowed, key):  # or no number
            of = f" of {worst}" if key == "parameter" else ""
            faults.append(f"{key}{of} is off by {value:.2g}, allowed {getattr(allowed, key):.2g}")
    faults += _update(taken, wanted)
    if cell.precision == "fp32":
        faults += _against_oracle(taken, wanted, {name: allowed.parameter * scale for name, scale in scales.items()})
    verdict = "DIFFERENT" if faults else "equal" if cell.precision == "fp32" else "bounded"
    return Verdict(verdict, "; ".join(faults), figures, told)


def _bits(taken: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    faults = []
    parts = {
        "buffer": (taken["buffers"], wanted["buffers"]), "start": (taken["before"], wanted["start"]), "frozen weight": (taken["after"], wanted["kept"]),
    }  # fmt: skip
    for what, (ours, theirs) in parts.items():
        if bad := [name for name, value in theirs.items() if name not in ours or not same_bits(ours[name], value)]:
            faults.append(f"{what}: {bad[0]} is not plain transformers' to the bit ({len(bad)} of {len(theirs)})")
    written = {name: value for name, value in taken["after"].items() if "/" not in name}
    if strange := written.keys() - wanted["start"].keys() - wanted["kept"].keys() - wanted["buffers"].keys():
        faults.append(f"{min(strange)} is written as a weight of the stage, and is none")
    if lost := [
        name for name in written.keys() & wanted["buffers"].keys() if not torch.equal(written[name], wanted["buffers"][name].float())
    ]:
        faults.append(f"buffer: {min(lost)} is not written as it was")
    return faults


def _gradient(taken: dict[str, Any], name: str) -> Tensor:
    """As AdamW was given it, after clipping: its first moment after one step is (1 − β₁) times that."""
    return taken["after"][f"exp_avg/{name}"] / (1 - oracle.CONFIG.betas[0])  # type: ignore[no-any-return]


def _update(taken: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Every weight and second moment is what torch's AdamW makes of the start and of the gradient, up to the last bits of each."""
    after = taken["after"]
    start, gradients = {n: taken["before"][n] for n in wanted["start"]}, {n: _gradient(taken, n) for n in wanted["start"]}
    stepped = oracle.adamw(start, gradients)
    for name, weight in stepped.items():
        allowed = 4 * ROUNDING["fp32"] * (weight.abs() + start[name].abs()) + 1e-5 * items.RATE
        if not bool(((after[name] - weight).abs() <= allowed).all()):
            return [
                f"weight: {name} is not AdamW's of its gradient, by {float((after[name] - weight).abs().max() / items.RATE):.2g} of the rate"
            ]
        square = (1 - oracle.CONFIG.betas[1]) * gradients[name] ** 2
        if not bool(((after[f"exp_avg_sq/{name}"] - square).abs() <= 1e-5 * square + 1e-36).all()):
            return [f"second moment: {name}"]
    return []


def _against_oracle(taken: dict[str, Any], wanted: dict[str, Any], noise: dict[str, float]) -> list[str]:
    """The weights after one step are the oracle's. AdamW's first step is g / (|g| + ε): either sign where g is below the bound, and where it is near
    ε = 1e-8 less than the whole rate by a share that a gradient within the bound changes: by s(|g|) − s(|g| − bound) at most, s(g) = g / (g + ε)."""
    clipped = min(1.0, oracle.CONFIG.clip / wanted["norm"])
    for name, weight in wanted["stepped"].items():
        size = (clipped * wanted["gradient"][name]).abs()
        clear = size > 2 * noise[name]
        allowed = 4 * ROUNDING["fp32"] * weight.abs() + (1e-4 + _first_step(size) - _first_step(size - noise[name])) * items.RATE
        far = ((taken["after"][name] - weight).abs() > allowed) & clear
        if bool(far.any()):
            return [f"weight: {name} is not the oracle's after a step ({int(far.sum())} of {weight.numel()} values)"]
    return []


def _first_step(size: Tensor) -> Tensor:
    """A share of the rate."""
    return size / (size + ADAM_EPSILON)


def against_other_stages(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same cells (their values and their verdict's), with `told.bits`: whether raw gradients are those of the lowest ZeRO stage to the bit.

    A stage divides what is held, not what is computed: rows, network and arithmetic are the same. Stages 0 to 2 leave autograd alone, so the lowest of
    them that ran is plain torch on the same rows. DIFFERENT where first losses are not the same to the bit. Gradients may be another rounding where
    DeepSpeed cuts autograd's graph and sums meet in another order; that is said, and within the bounds.
    """
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["told"]:
            alike[tuple(line[key] for key in ("family", "trained", "rows", "precision", "workers"))].append(line)
    replaced: dict[int, dict[str, Any]] = {}
    for group in alike.values():
        lowest, *others = sorted(group, key=lambda line: int(line["zero"]))
        for line in others:
            told = {**line["told"], "bits": line["told"]["gradients"] == lowest["told"]["gradients"]}
            replaced[id(line)] = {**line, "told": told}
            if fault := _not_thesame_bits(line["told"], lowest["told"], f"ZeRO-{lowest['zero']}'s"):
                replaced[id(line)] |= {"verdict": "DIFFERENT", "why": "; ".join(filter(None, [line["why"], fault]))}
    return [replaced.get(id(line), line) for line in lines]


def _not_thesame_bits(ours: dict[str, Any], theirs: dict[str, Any], stage: str) -> str:
    if ours["one_item"] != theirs["one_item"]:
        return f"rows are not packed as {stage}"
    if ours["losses"] != theirs["losses"]:
        return f"first loss is not {stage} to the bit: {sum(ours['losses'])!r}, {sum(theirs['losses'])!r}"
    ranks = zip(ours["gradients"], theirs["gradients"], strict=True)
    missing = sorted({name for one, other in ranks for name in other.keys() - one.keys()})
    return f"no gradient comes to {missing[0]}, and {stage} has one ({len(missing)})" if missing else ""
