"""What training draws at random: its key, recomputation, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BioGptConfig, GPT2Config, LlamaConfig, OPTConfig

from console import UserError
from data.ground.adapters import Adapter
from experiment import load_experiment
from experiment_yaml import ExperimentError
from tests.conftest import ROOT
from tests.numerics.ranks import steps
from trainer.adapter.adapter import inject, trained_parameters
from trainer.config import TrainerConfig
from trainer.step.randomness import drawn_by, draws_of, refuse_draws

DEMO = ROOT / "experiments" / "bios_cpu.yaml"
ROW: dict[str, Any] = {"step": 4, "micro_step": 1}


def drawn(seed: int = 1, number: int = 2, rank: int = 0, **row: int) -> tuple[float, ...]:
    draws_of(seed, number, rank)({**ROW, **row})
    return tuple(torch.rand(4).tolist())


def test_draws_follow_seed_stage_step_micro_step_and_rank_and_nothing_else() -> None:
    first = drawn()
    torch.rand(1000)
    assert drawn() == first
    others = [drawn(seed=2), drawn(number=3), drawn(rank=1), drawn(step=5), drawn(micro_step=0), drawn(step=1, micro_step=4)]
    assert len({first, *others}) == 7


def gradients(recompute: bool, drawn_first: int) -> dict[str, torch.Tensor]:
    model: Any = steps.made_model("eager", attention_dropout=0.2)
    inject(model, Adapter(r=4, dropout=0.3, init=False), 0, 0)  # init: false, so that what is added is not 0
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    draws_of(1, 2, 0)({**ROW, "step": drawn_first})
    ids = torch.as_tensor(np.arange(20))[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in trained_parameters(model).items() if parameter.grad is not None}


def test_recomputation_draws_the_same_again() -> None:
    plain, again, other = gradients(False, 4), gradients(True, 4), gradients(True, 5)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert any((plain[name] - other[name]).abs().max() > 1e-3 for name in plain)  # the twin: another step's masks


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.adapter.dropout=0.1", "trainer.num_workers=[1, 2]"], "lora_dropout: 0.1 is drawn by each worker for its own rows"),
        (["arms.pit.adapter={type: loha, module_dropout: 0.1}"], "module_dropout: leaves whole modules out on one worker"),
        (["arms.pit.adapter={type: hra, r: 4, apply_GS: true}"], "apply_GS: with an even r"),
        (["arms.pit.adapter={type: miss, miss_dropout: 1.5}"], "miss_dropout: 1.5 is no share below 1"),
        (["arms.pit.adapter={type: oft, oft_block_size: 4, coft: true}"], "coft: peft rewrites the weights"),
        (["trainer.adapter.embeddings=true", "trainer.zero_stage=3"], "need trainer.zero_stage 0, 1 or 2"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right_are_refused_as_they_are_read(overrides: list[str], told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        load_experiment(DEMO, overrides)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_settings_that_can_be_right_are_read() -> None:
    assert load_experiment(DEMO, ["trainer.adapter.dropout=0.1", "trainer.num_workers=[2, 2]"])
    assert load_experiment(DEMO, ["trainer.adapter.dropout=0", "trainer.num_workers=[1, 2]"])
    assert load_experiment(DEMO, ["arms.pit.adapter={type: oft, oft_block_size: 4, coft: true}", "trainer.zero_stage=0"])
    assert load_experiment(DEMO, ["arms.pit.adapter={type: hra, r: 4, apply_GS: true, init_weights: false}"])


@pytest.mark.parametrize(
    ("config", "trainer", "told"),
    [
        (LlamaConfig(attention_dropout=0.1), {"num_workers": (1, 2)}, "attention_dropout: 0.1 is drawn by each worker"),
        (GPT2Config(), {"num_workers": (1, 2)}, "pdrop: 0.1 is drawn by each worker"),
        (LlamaConfig(attention_dropout=0.1), {"attention": "varlen"}, "varlen knows no dropout"),
        (OPTConfig(layerdrop=0.1), {}, "layerdrop: 0.1 skips layers"),
    ],
    ids=["elastic", "elastic by default", "varlen", "layerdrop"],
)
def test_what_a_model_draws_is_refused_where_it_cannot_be_right(config: Any, trainer: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        refuse_draws(config, TrainerConfig(**trainer))
    refuse_draws(config if "layerdrop" not in told else OPTConfig(), TrainerConfig())


def test_what_a_model_draws() -> None:
    assert drawn_by(LlamaConfig()) == {}
    assert set(drawn_by(GPT2Config())) == {"attn_pdrop", "embd_pdrop", "resid_pdrop"}  # not summary_first_dropout: no head of ours
    assert set(drawn_by(BioGptConfig())) == {"hidden_dropout_prob", "attention_probs_dropout_prob"}
