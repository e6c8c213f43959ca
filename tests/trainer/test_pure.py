"""Schedules, FLOPs, keys: known values."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig

from data.config import Mix, Stage
from trainer.config import TrainerConfig
from trainer.network.flops import peak_flops, row_flops
from trainer.network.network_size import network_size
from trainer.run import announce_lost_decay
from trainer.schedule import learning_rate
from trainer.store.stages import stage_key

STAGE = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=1, rate=1.0)


@pytest.mark.parametrize(
    ("changes", "step", "rate"),
    [
        ({}, 0, 1.0),  # no warm-up: the first step has the full rate
        ({}, 50, 0.55),  # half of the way: the middle between 1 and 0.1
        ({}, 100, 0.1),
        ({"schedule": "linear"}, 75, 0.25),
        ({"schedule": "constant"}, 99, 1.0),
        ({"warmup_steps": 10}, 0, 0.1),
        ({"warmup_steps": 10}, 9, 1.0),
        ({"warmup_steps": 10}, 10, 1.0),
    ],
)
def test_learning_rate(changes: dict, step: int, rate: float) -> None:  # type: ignore[type-arg]
    assert learning_rate(STAGE.model_copy(update=changes), step, 100) == pytest.approx(rate)


def test_a_decay_that_fp32_cannot_see_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """At the least product that torch's AdamW still applies nothing is said; at half of it the weight stays as it is, and that is said once."""
    import torch

    def decayed(rate: float) -> bool:
        weight = torch.nn.Parameter(torch.ones(1))
        weight.grad = torch.zeros(1)
        torch.optim.AdamW([weight], lr=rate, weight_decay=0.1).step()
        return float(weight) < 1

    for rate in (5e-6, 4e-7, 2e-7, 1e-8):
        announce_lost_decay({"a": [STAGE.model_copy(update={"rate": rate})] * 3, "b": [STAGE]}, 0.1)
        told = capsys.readouterr().err
        assert bool(told) != decayed(rate), rate
        assert told.count("\n") <= 1 and ("a: stage 1 and 2 more" in told) == bool(told)
    announce_lost_decay({"a": [STAGE.model_copy(update={"rate": 1e-8})]}, 0.0)
    assert not capsys.readouterr().err


def test_cosine_equals_transformers() -> None:
    import torch
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 0, 37, min_lr_rate=0.1)
    for step in range(37):
        assert learning_rate(STAGE, step, 37) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_schedules_equal_transformers(schedule: str, warmup: int) -> None:
    """Ours warms up to the full rate within the warm-up, theirs one step later; from there on they are the same."""
    import torch
    from transformers import optimization as theirs

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    known = {
        "constant": lambda: theirs.get_constant_schedule_with_warmup(optimizer, warmup),
        "linear": lambda: theirs.get_linear_schedule_with_warmup(optimizer, warmup, 40),
        "cosine": lambda: theirs.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, 40, min_lr_rate=0.2),
        "wsd": lambda: theirs.get_wsd_schedule(optimizer, warmup, 10, num_training_steps=40, decay_type="linear", min_lr_ratio=0.2),
    }[schedule]()
    rates = []
    for _ in range(41):
        rates.append(known.get_last_lr()[0])
        optimizer.step()
        known.step()
    stage = STAGE.model_copy(update={"schedule": schedule, "warmup_steps": warmup, "final_rate_share": 0.2, "decay_share": 0.25})
    ours = [learning_rate(stage, step, 40) for step in range(40)]
    assert ours[warmup:] == pytest.approx(rates[warmup:40], abs=1e-9)
    if schedule != "wsd":  # theirs warms up from the final rate, ours from 0 as everywhere
        assert ours[:warmup] == pytest.approx(rates[1 : warmup + 1], abs=1e-9)
    assert max(abs(a - b) for a, b in zip(ours, [learning_rate(STAGE, step, 40) for step in range(40)], strict=True)) > 0.05  # the twin


def test_a_share_of_the_steps_warms_up_every_stage_anew() -> None:
    share, steps = STAGE.model_copy(update={"warmup_share": 0.1}), STAGE.model_copy(update={"warmup_steps": 5})
    assert [learning_rate(share, n, 50) for n in range(50)] == [learning_rate(steps, n, 50) for n in range(50)]
    assert learning_rate(share, 0, 200) == 1 / 20 and learning_rate(STAGE, 0, 200) == 1  # the twin: no warm-up
    with pytest.raises(ValueError, match="either warmup_steps or warmup_share"):
        Stage(mix=Mix(train_documents=1), epochs=1, batch_items=1, rate=1.0, warmup_steps=1, warmup_share=0.1)


LLAMA_7B = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)


def test_llama_7b_has_its_known_size() -> None:
    # 6,738,415,616 parameters; the input embedding (131,072,000) and the norms (65 × 4096) take no part in matrix products.
    size = network_size(LLAMA_7B)
    assert size.products == 6_738_415_616 - 131_072_000 - 65 * 4096
    assert (size.parameters, size.active, size.experts, size.attention_width) == (6_738_415_616, 6_738_415_616, 0, 32 * 4096)


def test_flops_by_hand() -> None:
    one, two = row_flops(LLAMA_7B, [0, 1000]), row_flops(LLAMA_7B, [0, 500, 1000])
    assert one == 6 * network_size(LLAMA_7B).products * 1000 + 12 * 32 * 4096 * 1000**2
    assert two < one  # items do not attend to each other


def test_peaks() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("TPU") is None
    assert peak_flops("NVIDIA RTX A1000") is None and peak_flops("NVIDIA H100 NVL") == 835e12 and peak_flops("NVIDIA A10G") == 70e12


def key(**changes: object) -> str:
    settings = {
        "parent": "p", "stage": STAGE, "plan_sha256": "a", "tokens_sha256": "t", "trainer": TrainerConfig(), "precision": "fp32", "capacity": None, "seed": 0,
        **changes,
    }  # fmt: skip
    return stage_key(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": "q"},
        {"plan_sha256": "b"},
        {"tokens_sha256": "u"},
        {"precision": "bf16"},
        {"capacity": 512},
        {"seed": 1},
        {"stage": STAGE.model_copy(update={"rate": 2.0})},
        {"stage": STAGE.model_copy(update={"loss": "token"})},
        {"trainer": TrainerConfig(clip=0.5)},
    ],
)
def test_key_follows_what_changes_the_weights(changes: dict) -> None:  # type: ignore[type-arg]
    assert key(**changes) != key()


@pytest.mark.parametrize("trainer", [TrainerConfig(num_workers=4), TrainerConfig(zero_stage=3), TrainerConfig(gradient_checkpointing=True)])
def test_key_ignores_how_the_work_is_spread(trainer: TrainerConfig) -> None:
    assert key(trainer=trainer) == key()


def test_a_plan_file_never_outlives_its_numbering(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The same stage over more people: equal hash (items by id), other item numbers. Workers must not read the old file."""
    import numpy as np

    from data.config import Bios
    from data.corpus.bios import make_bios
    from data.curriculum.catalogue import catalogue_of
    from data.curriculum.plan import compile_plan, load_plan
    from trainer.jobs.prepare import _write_plan

    stage = Stage(mix=Mix(replay_documents=1), epochs=1, batch_items=4, rate=1.0)
    few, many = (catalogue_of(make_bios(Bios(replay_people=6, train_people=n, test_people=1), 0)) for n in (5, 9))
    plans = [compile_plan(stage, catalogue, 0) for catalogue in (few, many)]
    assert plans[0].sha256 == plans[1].sha256 and not np.array_equal(plans[0].items, plans[1].items)
    stores = [SimpleNamespace(sha256="tokens", lengths=np.ones(len(catalogue))) for catalogue in (few, many)]
    paths = [_write_plan(plan, store, tmp_path) for plan, store in zip(plans, stores, strict=True)]  # type: ignore[arg-type]
    assert all(np.array_equal(load_plan(path).items, plan.items) for path, plan in zip(paths, plans, strict=True))
