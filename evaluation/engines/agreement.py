"""Does an engine compute the network that was trained? Fixed sequences, their log-likelihoods by two programs, and how far these are apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SEQUENCES, _TOKENS = 2, 144
"""More than one block (128 tokens) of vLLM's cache of prompts on CPUs."""
ROUNDING = {"float32": 1e-3, "bfloat16": 0.03}
"""Nats a token by which two right programs may differ. A token's log-probability is off by about the logits' size times the roundings on its
way, each of unit u: in fp32 8 × 16 roundings × 128 layers × 2⁻²⁴ = 1e-3 for the deepest networks (two layers: 2e-7 measured). In bf16 only one
program is compared with itself, which may sum in another order: some 8 × 2⁻⁸. Wrong weights or factors are 0.1 to 10 off."""
_VISIBLE = 10
"""Weights that moved the log-likelihoods by less than so many roundings show nothing of how they were put in place."""


@dataclass(frozen=True, slots=True)
class Saying:
    """A sequence, the first of its tokens that counts, and the log-likelihood from there on."""

    ids: list[int]
    start: int
    logprob: float


def probes(vocabulary: int, longest: int) -> list[list[int]]:
    """Many different tokens, so that many experts are asked; none of the rare numbers by which media are marked."""
    first = min(100, vocabulary // 2)
    ids = min(vocabulary, 10_000) - first
    length = max(2, min(_TOKENS, longest - 5))
    return [[first + (31 * i * i + 7 * i + 11 * n) % ids for i in range(length)] for n in range(_SEQUENCES)]


def apart(said: Sequence[Saying], truth: Sequence[float]) -> float:
    """The largest difference, in nats a token; not-a-number agrees with itself only."""
    return max(_difference(one.logprob, value) / (len(one.ids) - one.start) for one, value in zip(said, truth, strict=True))


def agree(said: Sequence[Saying], truth: Sequence[float], dtype: str) -> bool:
    return apart(said, truth) <= ROUNDING[dtype]


def moved(before: Sequence[Saying], after: Sequence[float], dtype: str) -> bool:
    """Whether other weights show in the scores of the same sequences (the first ones; continuations differ)."""
    same = [one for one in before if one.start == 1]
    return apart(same, after[: len(same)]) > _VISIBLE * ROUNDING[dtype]


def _difference(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return 0.0 if a == b else abs(a - b)
