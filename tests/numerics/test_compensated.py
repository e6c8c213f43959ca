"""The gate for low-precision states: 45 steps at 5e-6 must move the weights as fp32 moves them. Plain bf16 and stochastic rounding do not pass it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trainer.compensated import CompensatedAdamW

STEPS, RATE, GATE = 45, 5e-6, 0.99


def gradients() -> list[Tensor]:
    """One direction with noise around it, as batches of one data set give; every optimiser gets the same."""
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(96, 64, generator=generator)
    return [0.01 * (direction + torch.randn(96, 64, generator=generator)) for _ in range(STEPS)]


def update(dtype: torch.dtype, adamw: Any, after: Any = None) -> Tensor:
    """What STEPS steps add to weights as large as a language model's; in fp32."""
    start = (0.02 * torch.randn(96, 64, generator=torch.Generator().manual_seed(1))).bfloat16()
    weight = torch.nn.Parameter(start.clone().to(dtype))
    optimiser = adamw([weight], lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients():
        weight.grad = gradient.to(dtype)
        optimiser.step()
        if after:
            after(weight)
    rest = optimiser.state[weight].get("rest")
    return (weight.detach().float() + (0 if rest is None else rest.float()) - start.float()).flatten()


@pytest.fixture(scope="module")
def fp32() -> Tensor:
    return update(torch.float32, torch.optim.AdamW)


def test_compensated_states_pass_the_gate(fp32: Tensor) -> None:
    assert float(cosine_similarity(update(torch.bfloat16, CompensatedAdamW), fp32, dim=0)) >= GATE


def test_the_weights_alone_move_too(fp32: Tensor) -> None:
    """What the model computes with is the bf16 weight: it follows the exact one to half its last bit."""
    exact = update(torch.float32, torch.optim.AdamW)
    start = (0.02 * torch.randn(96, 64, generator=torch.Generator().manual_seed(1))).bfloat16().float().flatten()
    weight = torch.nn.Parameter(start.bfloat16().view(96, 64))
    optimiser = CompensatedAdamW([weight], lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients():
        weight.grad = gradient.bfloat16()
        optimiser.step()
    wanted = start + exact
    half_a_bit = wanted.abs() * 2**-8
    assert float(((weight.detach().float().flatten() - wanted).abs() <= half_a_bit + 0.05 * exact.abs()).float().mean()) > 0.99


def test_plain_bf16_fails_the_gate(fp32: Tensor) -> None:
    """The twin: most updates are smaller than half the last bit of the weight."""
    plain = update(torch.bfloat16, torch.optim.AdamW)
    assert float(cosine_similarity(plain, fp32, dim=0)) < 0.9
    assert float((plain == 0).float().mean()) > 0.5


def test_stochastic_rounding_fails_the_gate(fp32: Tensor) -> None:
    """Right on average, and noisy: fp32 states whose weight is rounded up or down at random after every step."""
    torch.manual_seed(3)

    def round_at_random(weight: Tensor) -> None:
        bits = weight.data.view(torch.int32)
        weight.data.copy_(((bits + torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32)) & -65536).view(torch.float32))

    rounded = update(torch.float32, torch.optim.AdamW, after=round_at_random)
    assert 0.2 < float(cosine_similarity(rounded, fp32, dim=0)) < GATE


def test_in_fp32_it_is_torchs_adamw(fp32: Tensor) -> None:
    """fp32, sums in another order; the remainder is then 0."""
    torch.testing.assert_close(update(torch.float32, CompensatedAdamW), fp32, rtol=1e-3, atol=1e-9)
