"""The gate for low-precision states: 45 steps at 5e-6 must move the weights as fp32 moves them. Plain bf16 and stochastic rounding do not pass it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.kernels import compensated
from trainer.kernels.compensated import CompensatedAdamW

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


def in_one_piece(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """A step over whole tensors, as the optimiser once took it."""
    first, second = group["betas"]
    exp_avg = state["exp_avg"].float().lerp(gradient.float(), 1 - first)
    exp_avg_sq = state["exp_avg_sq"].float().lerp(gradient.float().square(), 1 - second)
    state["exp_avg"].copy_(exp_avg)
    state["exp_avg_sq"].copy_(exp_avg_sq)
    weight = parameter.float() + state["rest"].float()
    weight *= 1 - group["lr"] * group["weight_decay"]
    spread = exp_avg_sq.div_(1 - second ** state["step"]).sqrt_().add_(group["eps"])
    weight -= group["lr"] / (1 - first ** state["step"]) * exp_avg.div_(spread)
    parameter.copy_(weight)
    state["rest"].copy_(weight - parameter.float())


SHAPES = [(3, 5), (300, 256), (512, 256), (131_073,)]
"""Below a piece, one and a bit, exactly two, two and one element."""


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made anew."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if type(x) is Tensor or type(x) is torch.nn.Parameter}
        if type(made) is Tensor and made.untyped_storage().data_ptr() not in given:
            self.found = max(self.found, made.numel())
        return made


def after_steps(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, whole: bool, moment: Any = None, rate: float = 3e-3
) -> tuple[list[Tensor], int]:
    """(weights and states after four steps, elements of the largest temporary of the fourth)."""
    if whole:
        monkeypatch.setattr(compensated, "_update", in_one_piece)
    generator = torch.Generator().manual_seed(4)
    weights = [torch.nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(dtype)) for shape in SHAPES]
    optimiser = CompensatedAdamW(
        [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95), weight_decay=0.1, moment=moment
    )
    for step in range(4):
        for weight in weights:
            weight.grad = (0.01 * torch.randn(weight.shape, generator=generator)).to(dtype)
        if step == 3:
            with Largest() as largest:
                optimiser.step()
        else:
            optimiser.step()
    monkeypatch.undo()
    kept = [optimiser.state[weight][name] for weight in weights for name in ("rest", "exp_avg", "exp_avg_sq")]
    return [weight.detach() for weight in weights] + [
        one.dequantize() if moment and hasattr(one, "codes") else one for one in kept
    ], largest.found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_piece_by_piece_are_the_bits_of_one_piece(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    pieces, largest = after_steps(monkeypatch, dtype, whole=False)
    whole, before = after_steps(monkeypatch, dtype, whole=True)
    assert all(torch.equal(a, b) for a, b in zip(pieces, whole, strict=True))
    assert largest == 2**16 < before == 131_073  # no number in fp32 for every weight
    other, _ = after_steps(monkeypatch, dtype, whole=True, rate=3.03e-3)  # the twin
    assert not any(torch.equal(a, b) for a, b in zip(pieces[:4], other[:4], strict=True))


@pytest.mark.slow
def test_moments_in_8_bits_are_cut_at_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's, where `make peers` or a GPU environment has them."""
    from benchmarks.gpu_8b import moment_in_8_bits

    moment = moment_in_8_bits()
    if moment is None:
        pytest.skip("torchao is not here")
    pieces, whole = (after_steps(monkeypatch, torch.bfloat16, whole, moment)[0] for whole in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(pieces, whole, strict=True))
