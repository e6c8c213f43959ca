"""What a token that follows a teacher costs: by hand, and its slope by autograd."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from trainer.kernels.linear_loss import LOGITS_AT_ONCE
from trainer.kernels.taught_loss import divergence, taught_nll
from trainer.teaching.teacher import most_probable


def test_divergence_by_hand() -> None:
    """Teacher 1/2, 1/4, 1/8, 1/8; student 1/4 each; the two likeliest and the rest: ½ ln 2 + ¼ ln 1 + ¼ ln ½ = ¼ ln 2."""
    teacher = torch.tensor([[0.125, 0.5, 0.125, 0.25]]).log()
    ids, log_probs = most_probable(teacher, 2)
    assert ids.tolist() == [[1, 3]]
    assert log_probs.exp().tolist() == [[0.5, 0.25, 0.25]]
    found = divergence(torch.zeros(1, 4), ids, log_probs)
    assert found.item() == pytest.approx(0.25 * np.log(2), rel=1e-6)  # fp32
    whole = divergence(torch.zeros(1, 4), *most_probable(teacher, 4))
    assert whole.item() == pytest.approx(0.5 * np.log(2) + 0.25 * np.log(0.5), rel=1e-6)  # 1/8 against 1/4, twice
    assert whole.item() == pytest.approx(
        divergence(torch.zeros(1, 4), *most_probable(teacher, 20)).item(), rel=1e-6
    )  # fewer tokens than 20


def test_the_whole_vocabulary_is_plain_kl_and_a_part_is_below_it() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 60) * 3, torch.randn(7, 60) * 3
    plain = kl_div(student.double().log_softmax(-1), teacher.double().log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, *most_probable(teacher, 60)).double(), plain, rtol=1e-5, atol=1e-6)  # fp32 sums of 60
    part = divergence(student, *most_probable(teacher, 20)).double()
    assert (part < plain).all(), "putting tokens together can only lose"
    assert (divergence(teacher, *most_probable(teacher, 20)).abs() < 1e-6).all()


def test_a_sure_student_keeps_its_rest() -> None:
    """A student whose 20 largest sum to 1 in fp32: 1 − Σ would be 0, and its logarithm no number."""
    teacher = torch.cat([torch.full((1, 20), 4.0), torch.zeros(1, 40)], dim=1)
    student = torch.cat([torch.full((1, 20), 40.0), torch.zeros(1, 40)], dim=1)
    ids, log_probs = most_probable(teacher, 20)
    exact = divergence(student.double(), ids, log_probs.double())
    assert divergence(student, ids, log_probs).item() == pytest.approx(exact.item(), rel=1e-5)
    naive = (1 - student.softmax(-1).gather(1, ids).sum(-1)).clamp(min=0).log()
    assert not torch.isfinite(naive).all() or abs(float(naive) - float(student.softmax(-1)[0, 20:].sum().log())) > 1  # the twin


@pytest.mark.parametrize("bias", [False, True])
def test_slope_is_autograds(bias: bool) -> None:
    """In parts of 3 targets, against torch's own derivative of the formula; shares and weights of some targets are 0."""
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 50, bias=bias)
    hidden = torch.randn(8, 16, requires_grad=True)
    target, share, follow = torch.randint(0, 50, (8,)), torch.rand(8), torch.rand(8)
    share[2], follow[3] = 0.0, 0.0
    ids, log_probs = most_probable(torch.randn(8, 50) * 4, 20)
    logits = head(hidden)
    wanted = (cross_entropy(logits, target, reduction="none") * share).sum() + (divergence(logits, ids, log_probs) * follow).sum()
    leaves = [hidden, *head.parameters()]
    expected = torch.autograd.grad(wanted * 1.5, leaves)
    for at_once in (150, LOGITS_AT_ONCE):
        made = taught_nll(hidden, head, target, share, follow, ids, log_probs, at_once)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(torch.autograd.grad(made * 1.5, leaves), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # fp32 sums of 50 products in another order
    without = torch.autograd.grad((cross_entropy(head(hidden), target, reduction="none") * share).sum() * 1.5, leaves)
    assert (without[0] - expected[0]).abs().max() > 1e-3  # the twin
