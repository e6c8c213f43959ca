"""AdamW's bits do not depend on where a flat tensor is cut, so a resume at another world size goes on with the same ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

SIZE, STEPS = 1003, 5
CUTS = ((1003,), (502, 501), (335, 335, 333), (1, 7, 995), (500, 3, 500))


def stepped(cut: tuple[int, ...], **kernel: bool) -> Tensor:
    """Five steps of the trainer's optimiser on a flat tensor that lies in pieces: weight and both moments, put together again."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(SIZE, generator=generator)
    pieces = [torch.nn.Parameter(piece.clone()) for piece in start.split(cut)]  # a rank's own memory each
    optimiser = torch.optim.AdamW(pieces, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, **kernel)
    for _ in range(STEPS):
        gradient = torch.randn(SIZE, generator=generator)
        for piece, share in zip(pieces, gradient.split(cut), strict=True):
            piece.grad = share.clone()
        optimiser.step()
    kinds = [pieces, *([optimiser.state[piece][moment] for piece in pieces] for moment in ("exp_avg", "exp_avg_sq"))]
    return torch.stack([torch.cat([piece.detach() for piece in kind]) for kind in kinds])


def of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What trainer/engine.py asks torch for."""
    from tests.numerics import steps
    from trainer import engine

    asked: dict[str, Any] = {}

    class Enough(Exception):
        pass

    def adamw(groups: Any, **settings: Any) -> None:
        asked.update(settings)
        raise Enough

    monkeypatch.setattr(engine.torch.optim, "AdamW", adamw)
    with pytest.raises(Enough):
        engine.DeepSpeedEngine(steps.made_model(), steps.CONFIG, "fp32", torch.device("cpu"))
    monkeypatch.undo()
    return {key: value for key, value in asked.items() if key in ("fused", "foreach")}


def test_where_a_tensor_is_cut_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = of_the_trainer(monkeypatch)
    assert kernel == {"fused": False, "foreach": False}
    for kernels in (kernel, {"foreach": True}):  # the latter on GPUs
        whole = stepped(CUTS[0], **kernels)
        for cut in CUTS[1:]:
            assert torch.equal(stepped(cut, **kernels), whole), (kernels, cut)


def test_a_kernel_that_sees_the_cut_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: torch's fused kernel computes the last elements of a piece otherwise than the others, with its vector instructions; built without them it may not,
    so a last bit is planted in the first piece too."""
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        whole = stepped(CUTS[0], fused=True)
        assert any(not torch.equal(stepped(cut, fused=True), whole) for cut in CUTS[1:])
        torch.testing.assert_close(whole, stepped(CUTS[0]), rtol=1e-5, atol=1e-6)  # it is the same mathematics
    first = torch.optim.AdamW.step

    def step(self: Any) -> None:
        first(self)
        piece = self.param_groups[0]["params"][0].data
        piece[0] = torch.nextafter(piece[0], torch.tensor(9.0)) if len(piece) < SIZE else piece[0]

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    whole = stepped(CUTS[0])
    assert all(not torch.equal(stepped(cut), whole) for cut in CUTS[1:])
