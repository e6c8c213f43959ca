"""Half fine-tuning: what is frozen keeps its bits through DeepSpeed and the written fragments, the rest moves as in plain torch."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.helpers.groups import Groups
from tests.numerics.ranks import steps
from tests.numerics.ranks.frozen_steps import CASES, NUMBER, RESUMED, SEED, STAGE, start
from trainer.step.freeze import freeze, frozen_parameters
from trainer.step.plain import PlainEngine
from trainer.store.weights import FragmentWeights

SHAPES = {name: list(p.shape) for name, p in steps.made_model().named_parameters()}
FROZEN = frozen_parameters(SHAPES, 0.5, SEED, NUMBER)
WORLD_SIZE = 2


@pytest.fixture(scope="module")
def results(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return groups.call("tests.numerics.ranks.frozen_steps", tmp_path_factory.mktemp("frozen"), WORLD_SIZE)


@pytest.mark.parametrize(("zero_stage", "precision"), CASES)
def test_frozen_weights_keep_their_bits_and_the_others_move(results: Path, zero_stage: int, precision: str) -> None:
    stored = FragmentWeights(results / f"zero{zero_stage}-{precision}" / "whole", SHAPES, WORLD_SIZE)
    for name in SHAPES:
        same = torch.equal(stored.read(name), start().read(name))
        assert same == (name in FROZEN), name
    assert any(not torch.equal(start().read(name).bfloat16().float(), start().read(name)) for name in FROZEN)  # rounding would show


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_what_is_trained_moves_as_in_plain_torch(results: Path, zero_stage: int) -> None:
    model = steps.made_model()
    freeze(model, STAGE, SEED, NUMBER)
    steps.run_steps(PlainEngine(model, steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip), 0, 1)
    stored = FragmentWeights(results / f"zero{zero_stage}-fp32" / "whole", SHAPES, WORLD_SIZE)
    for name, weight in model.named_parameters():
        # fp32 sums in another order, as in test_zero.py
        torch.testing.assert_close(stored.read(name), weight.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("zero_stage", "precision"), RESUMED)
def test_a_resumed_stage_is_the_same_to_the_bit(results: Path, zero_stage: int, precision: str) -> None:
    folder = results / f"zero{zero_stage}-{precision}"
    whole, resumed, saved = (FragmentWeights(folder / part, SHAPES, WORLD_SIZE) for part in ("whole", "resumed", "saved"))
    for name in SHAPES:
        assert torch.equal(whole.read(name), resumed.read(name)), name
    assert any(not torch.equal(saved.read(name), whole.read(name)) for name in set(SHAPES) - FROZEN)  # the twin: it did go on


def llama(layers: int, bias: bool = False) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [9, 4]}
    for n in range(layers):
        block = f"model.layers.{n}"
        shapes |= {f"{block}.self_attn.{m}_proj.weight": [4, 4] for m in "qkvo"}
        shapes |= {f"{block}.self_attn.{m}_proj.bias": [4] for m in "qkv" if bias}
        shapes |= {f"{block}.mlp.{m}_proj.weight": [8, 4] for m in ("gate", "up", "down")}
        shapes |= {f"{block}.{m}.weight": [4] for m in ("input_layernorm", "post_attention_layernorm")}
    return {**shapes, "model.norm.weight": [4], "lm_head.weight": [9, 4]}


def test_half_of_every_category_in_every_block() -> None:
    frozen = frozen_parameters(llama(8), 0.5, 0, 0)
    counts = Counter((name.split(".")[2], name.split(".")[3]) for name in frozen)
    assert all(counts[str(n), "self_attn"] == 2 for n in range(8))
    assert [counts[str(n), "mlp"] for n in range(8)] == [1, 2] * 4  # half of three, over all blocks
    assert all(counts[str(n), "input_layernorm"] + counts[str(n), "post_attention_layernorm"] == 1 for n in range(8))
    assert not frozen & {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert len(frozen_parameters(llama(8), 0.25, 0, 0)) == 8 * 1 + 8 * 3 // 4 + 8 * 2 // 4


def test_a_matrix_goes_with_its_bias() -> None:
    frozen = frozen_parameters(llama(6, bias=True), 0.5, 0, 0)
    for name in frozen:
        assert name.removesuffix("bias") + "weight" in frozen if name.endswith("bias") else True
        assert name.replace(".weight", ".bias") in frozen or not any(f"{m}_proj" in name for m in "qkv")
    assert any(name.endswith("bias") for name in frozen)


def test_each_round_draws_anew_and_is_repeatable() -> None:
    rounds = [frozen_parameters(llama(8), 0.5, 0, number) for number in range(3)]
    assert rounds[0] != rounds[1] != rounds[2] and rounds[0] == frozen_parameters(llama(8), 0.5, 0, 0)
    assert rounds[0] != frozen_parameters(llama(8), 0.5, 1, 0)
    assert frozen_parameters(llama(8), 0.0, 0, 0) == set()


def test_an_explicit_round_wins_over_the_stages_place() -> None:
    def frozen(number: int, **changes: int) -> set[str]:
        model = steps.made_model()
        freeze(model, STAGE.model_copy(update=changes), SEED, number)
        return {name for name, p in model.named_parameters() if not p.requires_grad}

    assert frozen(1) == FROZEN and frozen(4, freeze_round=1) == FROZEN and frozen(4) != FROZEN
    assert frozen(1, freeze_share=0) == set()
