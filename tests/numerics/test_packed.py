"""A packed row equals its items one by one: logits, loss, gradients; and a leak between items is caught."""

import numpy as np
import pytest
import torch

from data.rows.flat_rows import step_rows
from tests.numerics.ranks import steps
from trainer.kernels.attention import attention_inputs, leak
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss

CPU = torch.device("cpu")


def engine_of(attention: str) -> PlainEngine:
    return PlainEngine(steps.made_model(attention), (0.9, 0.95), 0.1, 0.0)


def gradients(engine: PlainEngine) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in engine.module.parameters()])


@pytest.mark.parametrize("attention", ["by_item", "padded_sdpa", "sdpa", "eager"])
def test_packed_equals_one_by_one(attention: str) -> None:
    """Loss and gradients of a step in packed rows, and the same items each alone and padded by nothing, through plain causal attention."""
    store, plan = steps.made_store(), steps.made_plan()
    packed = engine_of(attention)
    total = sum(row_loss(packed, row, attention) for row in step_rows(plan, store, 0, 0, 1, 128, "example"))
    total.backward()

    alone = engine_of("eager")
    items = plan.step(0)
    losses = []
    for number in items:
        ids = torch.as_tensor(store.item(int(number)).astype(np.int64))
        start = int(store.loss_start[number])
        logits = alone.forward(input_ids=ids[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:]))  # mean per item
    reference = torch.stack(losses).mean()  # mean over items
    reference.backward()
    torch.testing.assert_close(total, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(packed), gradients(alone), rtol=1e-4, atol=1e-6)  # fp32 sums in another order


def test_token_mean_counts_every_token_once() -> None:
    store, plan = steps.made_store(), steps.made_plan()
    rows = step_rows(plan, store, 0, 0, 1, 64, "token")
    weights = np.concatenate([row["loss_weight"] for row in rows])
    targets = (store.lengths - store.loss_start)[plan.step(0)].sum()
    assert (weights > 0).sum() == targets  # split items included: no target is lost at a cut
    np.testing.assert_allclose(weights[weights > 0], 1 / targets, rtol=1e-6)


def logits_of(engine: PlainEngine, attention: str, forget_boundaries: bool = False):  # type: ignore[no-untyped-def]
    def compute(input_ids: np.ndarray, cu_seqlens: np.ndarray) -> torch.Tensor:
        if forget_boundaries:
            cu_seqlens = np.array([0, cu_seqlens[-1]], dtype=np.int32)
        positions = np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)])
        with torch.no_grad():
            inputs = attention_inputs(attention, cu_seqlens, CPU)
            return engine.forward(
                input_ids=torch.as_tensor(input_ids)[None], position_ids=torch.as_tensor(positions)[None], use_cache=False, **inputs
            ).logits[0]

    return compute


@pytest.mark.parametrize("attention", ["by_item", "padded_sdpa", "sdpa", "eager"])
def test_items_do_not_see_each_other(attention: str) -> None:
    assert leak(logits_of(engine_of(attention), attention), steps.VOCAB) < 1e-6


@pytest.mark.parametrize("attention", ["by_item", "padded_sdpa", "sdpa", "eager"])
def test_planted_leak_is_caught(attention: str) -> None:
    assert leak(logits_of(engine_of(attention), attention, forget_boundaries=True), steps.VOCAB) > 1e-3


def test_mamba_leaks() -> None:
    """A state-space model carries its state over the boundary whatever position_ids say: the check must see it."""
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(0)
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=steps.VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8))

    def compute(input_ids: np.ndarray, cu_seqlens: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return mamba(input_ids=torch.as_tensor(input_ids)[None]).logits[0]

    assert leak(compute, steps.VOCAB) > 1e-3
