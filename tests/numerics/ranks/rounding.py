"""How far two bf16 runs of tests/numerics/ranks/steps.py may be apart on any processor: as far as if each rounded all by itself, and no farther.

Processors with and without bf16 units add in another order; a sum that ends near the middle between two bf16 numbers then goes to the other one, and so does all
that is computed from it. Which values do so cannot be known, but how many there are between a weight and a logit, and how large each rounding is, can.
"""

from math import pi, sqrt

RMS = 2.0**-8.5 / sqrt(3)
"""Of one rounding to bf16, relative: at most half a spacing, which is 2⁻⁹ to 2⁻⁸ of the value, and anywhere in it; 0.16 %."""
FORWARD = 2 * 16 + 4
"""Values rounded one after the other between a weight and a logit. In each of two layers: norm (2), projection, rotation (2), probabilities, what attention gives,
projection, sum; norm (2), projection, activation, product, projection, sum. Beside them embedding, last norm (2) and head. All are counted in full, though what a layer adds
is less than what it adds to."""
SPREAD_LOGITS = sqrt(2 * FORWARD) * RMS
"""Of one logit's difference between two such runs, as a share of logits' size; 1.3 %."""
SPREAD_GRADIENTS = sqrt(2 * 2 * FORWARD) * RMS
"""Of one gradient's, as a share of gradients' size (it comes back through as many); 1.9 %. Against fp32 one run rounds alone, but its weights too: the same."""
LOGITS = 0.15
"""Their size: 32 products of a normalised value and a weight of 0.02 at the start, and up to four steps of 3e-3 more."""

LOSSES = SPREAD_LOGITS * LOGITS
"""Absolute, 0.002: one token's loss moves as its logits do, and a mean over some 150 tokens of which each goes its own way by a twelfth of that."""
DIRECTION = 1 - 2 * SPREAD_GRADIENTS / pi
"""Cosine of Adam's updates, 0.988: they are of the rate's size whatever the gradient's, so what counts are signs. Of numbers that move by a share s of their
size, s / π change sign, and each that does takes 2 off the sum of n products that are 1 each: 2 s / π of the cosine."""
_SPREAD_BESIDE = sqrt(SPREAD_GRADIENTS**2 + 2 * (1 - DIRECTION))
"""Of the gradient of LoRA's A: it is made of B, which starts at zero and is then nothing but updates, whose direction is as far off as DIRECTION says; 16 %."""
DIRECTION_OF_ADAPTERS = (DIRECTION + 1 - 2 * _SPREAD_BESIDE / pi) / 2
"""0.944: of an adapter's two matrices, which have about as many numbers, B's updates are as good as any other's and A's follow from the above."""


def norms(independent: float) -> float:
    """Relative, four deviations, of the norm of a gradient in which so many elements count: (Σ g²)² / Σ g⁴."""
    return 4 * SPREAD_GRADIENTS / sqrt(independent)
