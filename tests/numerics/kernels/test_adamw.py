"""AdamW's bits do not depend on where a flat tensor is cut, so a resume at another world size goes on with the same ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.kernels.adamw import CutFreeAdamW

SIZE, STEPS = 1003, 5
CUTS = ((1003,), (502, 501), (335, 335, 333), (1, 7, 995), (500, 3, 500), (*(1,) * 37, 966))
Make = Callable[..., torch.optim.Optimizer]


def of_the_trainer(groups: Any) -> torch.optim.Optimizer:
    return CutFreeAdamW(groups, 3e-3, (0.9, 0.95), on_cpu=True)


def of_torch(**kernel: bool) -> Make:
    return lambda groups: torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), **kernel)


def stepped(cut: tuple[int, ...], make: Make, size: int = SIZE) -> Tensor:
    """Five steps on a flat tensor that lies in pieces: weight and both moments, put together again."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(size, generator=generator)
    pieces = [torch.nn.Parameter(piece.clone()) for piece in start.split(cut)]  # a rank's own memory each
    optimiser = make([{"params": pieces, "weight_decay": 0.1}])
    for _ in range(STEPS):
        gradient = torch.randn(size, generator=generator)
        for piece, share in zip(pieces, gradient.split(cut), strict=True):
            piece.grad = share.clone()
        optimiser.step()
    kinds = [pieces, *([optimiser.state[piece][moment] for piece in pieces] for moment in ("exp_avg", "exp_avg_sq"))]
    return torch.stack([torch.cat([piece.detach() for piece in kind]) for kind in kinds])


def test_where_a_tensor_is_cut_does_not_show() -> None:
    for make in (of_the_trainer, of_torch(foreach=True)):  # the latter on GPUs
        whole = stepped(CUTS[0], make)
        for cut in CUTS[1:]:
            assert torch.equal(stepped(cut, make), whole), (make, cut)


def test_threads_cut_where_nothing_shows() -> None:
    """torch gives each thread a part of a tensor: where one ends the fused kernel has whole registers."""
    size, threads = 100_003, torch.get_num_threads()
    whole = stepped((size,), of_the_trainer, size)
    try:
        torch.set_num_threads(3)
        assert torch.equal(stepped((size,), of_the_trainer, size), whole)
    finally:
        torch.set_num_threads(threads)


def test_it_is_torchs_adamw() -> None:
    """In other roundings: each of some ten operations an element and step rounds to 2⁻²⁴ of its result."""
    torch.testing.assert_close(stepped(CUTS[2], of_the_trainer), stepped(CUTS[0], of_torch(foreach=False)), rtol=1e-5, atol=1e-6)
    other = stepped(CUTS[0], lambda groups: CutFreeAdamW(groups, 3e-3, (0.9, 0.96), on_cpu=True))
    assert (other - stepped(CUTS[0], of_torch(foreach=False))).abs().max() > 1e-3  # the twin


def test_the_trainer_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.numerics.ranks import steps
    from trainer.step import engine

    class Enough(Exception):
        pass

    def adamw(groups: Any, **settings: Any) -> None:
        assert settings.pop("on_cpu") and settings == {"lr": 0.0, "betas": steps.CONFIG.betas}
        raise Enough

    monkeypatch.setattr(engine, "CutFreeAdamW", adamw)
    with pytest.raises(Enough):
        engine.DeepSpeedEngine(steps.made_model(), steps.CONFIG, "fp32", torch.device("cpu"))


def test_a_kernel_that_sees_the_cut_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: torch's fused kernel as it is computes the last elements of a piece otherwise than the others, with its vector instructions; built without them it may not,
    so a last bit is planted in the first piece too."""
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        fused = of_torch(fused=True)
        assert any(not torch.equal(stepped(cut, fused), stepped(CUTS[0], fused)) for cut in CUTS[1:])
    first = torch.optim.AdamW.step

    def step(self: Any) -> None:
        first(self)
        piece = self.param_groups[0]["params"][0].data
        piece[0] = torch.nextafter(piece[0], torch.tensor(9.0)) if len(piece) < SIZE else piece[0]

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    whole = stepped(CUTS[0], of_torch(foreach=False))
    assert all(not torch.equal(stepped(cut, of_torch(foreach=False)), whole) for cut in CUTS[1:])


@pytest.mark.parametrize("rows", [16, 5])  # a multiple of the kernel's registers, and not
def test_gradients_laid_out_otherwise(rows: int) -> None:
    """A transpose: the loop goes by its strides. The twin: torch's fused kernel goes by places in memory and moves the wrong elements."""

    def stepped_once(make: Make) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        weight = torch.nn.Parameter(torch.randn(rows, 6, generator=generator))
        weight.grad = torch.randn(6, rows, generator=generator).t()
        make([{"params": [weight], "weight_decay": 0.1}]).step()
        return weight.detach()

    right = stepped_once(of_torch(foreach=False))
    torch.testing.assert_close(stepped_once(of_the_trainer), right, rtol=1e-5, atol=1e-6)
    assert float((stepped_once(of_torch(fused=True)) - right).abs().max()) > 1e-3
