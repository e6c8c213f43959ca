"""The chunked loss equals cross entropy over all logits, weight by weight, and never holds them; heads that it cannot serve are found."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from data.rows.flat_rows import step_rows
from tests.numerics.ranks import steps
from trainer.kernels import linear_loss
from trainer.kernels.linear_loss import plain_head, weighted_nll
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss

K, D, V = 37, 24, 301


def made(dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, D, generator=generator).to(dtype).requires_grad_() for n in (K, V))
    offset = torch.randn(V, generator=generator).to(dtype).requires_grad_() if bias else None
    share = torch.rand(K, generator=generator) * (torch.arange(K) % 5 != 0)
    return hidden, weight, offset, torch.randint(0, V, (K,), generator=generator), share


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return (cross_entropy(logits.float(), target, reduction="none") * share).sum()


def loss_and_gradients(function: Any, dtype: torch.dtype, bias: bool, **more: Any) -> list[Tensor]:
    inputs = made(dtype, bias)
    loss = function(*inputs, **more)
    (3 * loss).backward()
    return [loss.detach(), *(x.grad.float() for x in inputs[:3] if x is not None)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_once", [V, 10 * V, 100 * V])
def test_equals_all_logits_at_once(at_once: int, bias: bool) -> None:
    """fp32, one target at a time, ten, and all: sums in another order."""
    ours, theirs = (loss_and_gradients(f, torch.float32, bias, **m) for f, m in ((weighted_nll, {"at_once": at_once}), (plain, {})))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


def test_in_bf16_it_is_as_near_to_fp32_as_all_logits_are() -> None:
    """The largest entries are those of targets: the slope, their share less a small part, and its product are each rounded to 2⁻⁸ of themselves at most. With half
    as much for what roundings of the logits do to that small part 1 % of the largest entry is allowed, whichever order a processor adds in."""
    exact = [x.detach().float().requires_grad_() for x in made(torch.bfloat16, False)[:2]]
    loss = plain(*exact, None, *made(torch.bfloat16, False)[3:])
    (3 * loss).backward()
    expected = [loss.detach(), *(x.grad for x in exact)]
    for function, more in ((weighted_nll, {"at_once": 10 * V}), (plain, {})):
        for a, b in zip(loss_and_gradients(function, torch.bfloat16, False, **more), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0.01 * float(b.abs().max()))


def test_weights_matter() -> None:
    """The twin: the same without weights is another loss."""
    *inputs, share = made(torch.float32, False)
    assert abs(float(weighted_nll(*inputs, share, V) - weighted_nll(*inputs, torch.ones_like(share), V))) > 0.1


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that anything makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_logits_are_never_there_as_a_whole() -> None:
    with Largest() as chunked:
        weighted_nll(*made(torch.float32, False), at_once=4 * V).backward()
    assert chunked.numel <= max(4 * V, V * D)
    with Largest() as whole:
        plain(*made(torch.float32, False)).backward()
    assert whole.numel >= K * V


def test_second_backward_pass_is_refused() -> None:
    """The gradients are scaled in place: a second pass would scale them twice."""
    loss = weighted_nll(*made(torch.float32, False), at_once=V)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward pass"):
        loss.backward()


def engine_of(model: torch.nn.Module) -> PlainEngine:
    return PlainEngine(model, (0.9, 0.95), 0.1, 0.0)


def step_gradients(engine: PlainEngine, attention: str) -> tuple[Tensor, Tensor]:
    rows = step_rows(steps.made_plan(), steps.made_store(), 0, 0, 1, steps.CAPACITY, "example")
    loss = sum(row_loss(engine, row, attention) for row in rows)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in engine.module.parameters()])


def without_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.step.step.plain_head", lambda *_: None)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("at_once", [3 * steps.VOCAB, linear_loss.LOGITS_AT_ONCE])
def test_step_is_the_same_with_and_without(tied: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "LOGITS_AT_ONCE", at_once)
    chunked = step_gradients(engine_of(steps.made_model(tied=tied)), "by_item")
    without_head(monkeypatch)
    whole = step_gradients(engine_of(steps.made_model(tied=tied)), "by_item")
    for a, b in zip(chunked, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def gemma2() -> Any:
    from transformers import AutoModelForCausalLM, Gemma2Config

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=steps.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        final_logit_softcapping=0.1, attn_implementation="eager",
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def test_capped_logits_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 bends its logits behind the head: served by all logits; forced through the head it would learn another loss."""
    model = gemma2()
    loss, gradients = step_gradients(engine_of(model), "eager")
    assert linear_loss._gives_logits[model] is False
    monkeypatch.setattr("trainer.step.step.plain_head", lambda engine, module, inputs: module.get_output_embeddings())
    forced, _ = step_gradients(engine_of(gemma2()), "eager")
    assert abs(float(loss - forced)) > 1e-3 and gradients.isfinite().all()


def test_a_plain_head_is_found() -> None:
    model = steps.made_model()
    row = {key: torch.as_tensor(value)[None] for key, value in linear_loss.tiny_row().items() if key != "cu_seqlens"}
    engine = engine_of(model)
    model.set_attn_implementation("eager")
    assert plain_head(engine, model, lambda: row) is model.get_output_embeddings()
    assert "forward" not in model.get_output_embeddings().__dict__
    assert np.isfinite(float(model(**row).logits.sum()))  # the head gives logits again


def test_mamba_through_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family without attention; one item a row."""
    from transformers import AutoModelForCausalLM, MambaConfig

    def once() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=steps.VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8))
        engine = engine_of(model)
        row = step_rows(steps.made_plan(), steps.made_store(), 0, 0, 1, steps.CAPACITY, "example")[0]
        loss = row_loss(engine, row, "eager")
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    chunked = once()
    without_head(monkeypatch)
    for a, b in zip(chunked, once(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))
