"""What a target costs that follows a teacher: w · nll of its token + v · forward KL from the teacher's distribution to the model's.

The teacher's is its k most probable tokens and the rest as one mass, so the model's is taken over the same k + 1 parts:

    KL = Σ_j p_j (log p_j − log q_j) + r (log r − log q_rest)

and its slope by the logits is q − p at the k tokens and q − r · (q within the rest) elsewhere. The model's rest is a sum over the other logits, never
1 − Σ q_j, which cancels where the model is sure; in the pass that trains its terms are relative to the largest logit, so a rest below e⁻⁸⁷ of it counts as e⁻⁸⁷. With k = the vocabulary this is the whole KL.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.linear_loss import LOGITS_AT_ONCE, GradsInForward, plus, plus_product, weighted_nll


def divergence(logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """Forward KL (K,) in fp32: logits (K, V), the teacher's ids (K, k), its log-probabilities (K, k + 1), the rest's last (−inf: no rest)."""
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    rest = logits.scatter(1, ids, float("-inf")).logsumexp(dim=-1, keepdim=True)
    ours = torch.cat([logits.gather(1, ids), rest], dim=1) - normaliser
    return _expected(log_probs, log_probs - ours)


def _expected(log_probs: Tensor, values: Tensor) -> Tensor:
    """Σ p · value; what has no mass adds nothing, however far apart its logarithms are."""
    p = log_probs.exp()
    return (p * torch.where(p > 0, values, 0.0)).sum(dim=-1)


class _TaughtNll(GradsInForward):
    """As trainer/kernels/linear_loss.py's, with a teacher: a part of the targets at a time, gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor, follow: Tensor, ids: Tensor,
        log_probs: Tensor, at_once: int,
    ) -> Tensor:  # fmt: skip
        wants = ctx.needs_input_grad[:3]
        total = torch.zeros((), device=hidden.device)
        grads: list[Tensor | None] = [torch.empty_like(hidden) if wants[0] else None, None, None]
        rows = max(1, at_once // len(weight))
        for part in (slice(start, start + rows) for start in range(0, len(hidden), rows)):
            logits = hidden[part] @ weight.T
            if bias is not None:
                logits += bias
            made, slope = _loss_and_slope(logits.float(), target[part], share[part], follow[part], ids[part], log_probs[part])
            total += made
            if not any(wants):
                continue
            if wants[2]:
                grads[2] = plus(grads[2], slope.sum(dim=0))
            slope = slope.to(hidden.dtype)
            if grads[0] is not None:
                grads[0][part] = slope @ weight
            if wants[1]:
                grads[1] = plus_product(grads[1], slope.T, hidden[part])
        ctx.grads, ctx.dtypes = grads, [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        return total


def _loss_and_slope(logits: Tensor, target: Tensor, share: Tensor, follow: Tensor, ids: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Σ share · nll + follow · KL, and its slope by the logits (K, V); takes the logits for its own."""
    own, of_top, largest = logits.gather(1, target[:, None])[:, 0], logits.gather(1, ids), logits.amax(dim=-1)
    slope = logits.sub_(largest[:, None]).exp_()  # one tensor of this size and one exponential, as without a teacher
    sums, top = slope.sum(dim=-1), slope.gather(1, ids)
    rest = slope.scatter_(1, ids, 0.0).sum(dim=-1).clamp_(min=torch.finfo(torch.float32).tiny)  # 0 where there are no others
    normaliser = sums.log() + largest
    ours = torch.cat([of_top - normaliser[:, None], (rest / sums).log()[:, None]], dim=1)
    loss = ((normaliser - own) * share + _expected(log_probs, log_probs - ours) * follow).sum()
    p, whole = log_probs.exp() * follow[:, None], (share + follow) / sums
    slope *= (whole - p[:, -1] / rest)[:, None]
    slope.scatter_(1, ids, top * whole[:, None])  # a token that stands twice (a small vocabulary) is set to the same twice
    slope.scatter_add_(1, ids, -p[:, :-1])
    slope.scatter_add_(1, target[:, None], -share[:, None])
    return loss, slope


def taught_nll(
    hidden: Tensor, head: torch.nn.Linear, target: Tensor, share: Tensor, follow: Tensor, ids: Tensor, log_probs: Tensor, at_once: int
) -> Tensor:
    """Σ share · nll + follow · KL, a scalar in fp32, from hidden states (K, d) and the output head; target, share and follow (K,), the rest as in `divergence`."""
    return _TaughtNll.apply(hidden, head.weight, head.bias, target, share, follow, ids, log_probs, at_once)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True)
class Told:
    """What a teacher says of the last n targets of a row, on the device."""

    follow: Tensor  # (n,)
    ids: Tensor  # (n, k)
    log_probs: Tensor  # (n, k + 1)

    def loss(self, hidden: Tensor, head: torch.nn.Linear, target: Tensor, share: Tensor) -> Tensor:
        """Of hidden states (K, d), of which the last n follow the teacher."""
        plain = len(target) - len(self.follow)
        told = (target[plain:], share[plain:], self.follow, self.ids, self.log_probs)
        total = taught_nll(hidden[plain:], head, *told, LOGITS_AT_ONCE)
        if plain:
            total = total + weighted_nll(hidden[:plain], head.weight, head.bias, target[:plain], share[:plain], LOGITS_AT_ONCE)
        return total

    def divergence(self, logits: Tensor) -> Tensor:
        """Σ follow · KL from logits (K, V), for a model whose logits are not its head's alone."""
        return (divergence(logits[len(logits) - len(self.follow) :], self.ids, self.log_probs) * self.follow).sum()
