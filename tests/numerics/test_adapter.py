"""Adapters through DeepSpeed equal peft in plain torch, saves hold the adapter alone, and merging gives peft's own merged weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data.rows.flat_rows import Row, step_rows
from tests.helpers.groups import Groups
from tests.numerics.ranks import adapter_steps, rounding, steps
from tests.numerics.ranks.adapter_steps import ADAPTERS, CASES, DROPPING, NUMBER, RESUMED, SEED, Case, model_folder, save_models
from trainer.adapter.adapter import inject, peft_config, trained_parameters
from trainer.network.loading import load_into
from trainer.network.model import build_model
from trainer.schedule import learning_rate
from trainer.step.plain import PlainEngine
from trainer.step.randomness import draws_of
from trainer.step.step import optimiser_step
from trainer.store.weights import FolderWeights, FragmentWeights

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def results(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    save_models(out)
    return groups.call("tests.numerics.ranks.adapter_steps", out, WORLD_SIZE)


class Oracle:
    """peft's own model, started where ours starts, four steps of plain torch over all ranks' rows, drawn as each rank draws."""

    def __init__(self, out: Path, name: str, drawn_apart: bool = True) -> None:
        from peft import get_peft_model

        folder = model_folder(out, name)
        start = build_model(str(folder), "by_item", torch.float32)
        load_into(start, FolderWeights(folder))
        inject(start, ADAPTERS[name], SEED, NUMBER)
        module = build_model(str(folder), "by_item", torch.float32)
        load_into(module, FolderWeights(folder))
        module.train()
        self.model: Any = get_peft_model(module, peft_config(ADAPTERS[name], module))
        ours = trained_parameters(start)
        theirs = {key.removeprefix("base_model.model."): p for key, p in self.model.named_parameters() if p.requires_grad}
        assert ours.keys() == theirs.keys()
        for key, parameter in theirs.items():
            parameter.data.copy_(ours[key].detach())
        self.start = {key: parameter.detach().clone() for key, parameter in theirs.items()}
        engine = PlainEngine(self.model, steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip)
        self.losses = []
        for step in range(steps.NUM_STEPS):
            rows = [row | {"rank": rank} for rank in range(WORLD_SIZE) for row in _rows(step, rank)]
            loss, _ = optimiser_step(
                engine,
                rows,
                learning_rate(steps.STAGE, step, steps.NUM_STEPS),
                "by_item",
                draw=lambda row: draws_of(SEED, NUMBER, row["rank"] if drawn_apart else 0)(row),
            )
            self.losses.append(float(loss))
        self.trained = {key: parameter.detach().clone() for key, parameter in theirs.items()}
        self.merged = dict(self.model.merge_and_unload().named_parameters())


def _rows(step: int, rank: int) -> list[Row]:
    return step_rows(steps.made_plan(), steps.made_store(), step, rank, WORLD_SIZE, steps.CAPACITY, "example")


@pytest.fixture(scope="module")
def oracles(results: Path) -> dict[str, Oracle]:
    return {name: Oracle(results, name) for name in ADAPTERS}


def folder_of(results: Path, case: Case) -> Path:
    return results / "-".join(map(str, case))


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "fp32"], ids=str)
def test_steps_equal_plain_peft(results: Path, oracles: dict[str, Oracle], case: Case) -> None:
    folder, oracle = folder_of(results, case), oracles[case[2]]
    told = json.loads((folder / "result.json").read_text())
    # fp32 sums in another order, as in test_zero.py
    torch.testing.assert_close(torch.tensor(told["losses"]), torch.tensor(oracle.losses), rtol=1e-5, atol=1e-5)
    stored = FragmentWeights(folder / "ended" / "adapter", told["shapes"], WORLD_SIZE)
    assert set(stored.names()) == set(oracle.trained)
    for name, weight in oracle.trained.items():
        torch.testing.assert_close(stored.read(name), weight, rtol=0, atol=1e-5)
    assert any((stored.read(name) - oracle.start[name]).abs().max() > 1e-3 for name in oracle.start)  # the twin: it did train
    merged = FragmentWeights(folder / "ended" / "merged", {n: list(p.shape) for n, p in oracle.merged.items()}, WORLD_SIZE)
    for name, weight in oracle.merged.items():
        torch.testing.assert_close(merged.read(name), weight.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "bf16"], ids=str)
def test_bf16_trains_fp32_adapters_and_leaves_the_base_exact(results: Path, oracles: dict[str, Oracle], case: Case) -> None:
    folder, oracle = folder_of(results, case), oracles[case[2]]
    told = json.loads((folder / "result.json").read_text())
    stored = FragmentWeights(folder / "ended" / "adapter", told["shapes"], WORLD_SIZE)
    moved = torch.cat([(stored.read(name) - oracle.start[name]).flatten() for name in oracle.start])
    expected = torch.cat([(weight - oracle.start[name]).flatten() for name, weight in oracle.trained.items()])
    assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > rounding.DIRECTION_OF_ADAPTERS
    a_part_wrong = torch.where(torch.arange(len(moved)) % 20 == 0, -moved, moved)  # the twin
    assert torch.nn.functional.cosine_similarity(a_part_wrong, expected, dim=0) < rounding.DIRECTION_OF_ADAPTERS
    base = FolderWeights(model_folder(results, case[2]))
    merged = FragmentWeights(folder / "ended" / "merged", {n: list(p.shape) for n, p in oracle.merged.items()}, WORLD_SIZE)
    for name in oracle.merged:
        trained = name.endswith("proj.weight") or (name.endswith("bias") and case[2] == "dora")
        assert torch.equal(merged.read(name), base.read(name)) == (not trained), name  # not rounded to bf16


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_a_resumed_stage_is_the_same_to_the_bit(results: Path, case: Case) -> None:
    folder = folder_of(results, case)
    shapes = json.loads((folder / "result.json").read_text())["shapes"]
    whole, resumed = (FragmentWeights(folder / part / "adapter", shapes, WORLD_SIZE) for part in ("ended", "resumed"))
    saved = FragmentWeights(folder / "saved", shapes, WORLD_SIZE)
    assert all(torch.equal(whole.read(name), resumed.read(name)) for name in shapes)
    assert any(not torch.equal(saved.read(name), whole.read(name)) for name in shapes)
    if case in DROPPING:  # the twin: what is drawn counts, and without its key it is drawn otherwise
        undrawn = FragmentWeights(folder / "undrawn" / "adapter", shapes, WORLD_SIZE)
        assert any((undrawn.read(name) - whole.read(name)).abs().max() > 1e-5 for name in shapes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_starts_where_peft_starts(results: Path, oracles: dict[str, Oracle], case: Case) -> None:
    """To the bit: draws are rounded by no ZeRO stage, DoRA's norms are the exact weights', trained biases are the parent's."""
    folder, oracle = folder_of(results, case), oracles[case[2]]
    shapes = json.loads((folder / "result.json").read_text())["shapes"]
    start = FragmentWeights(folder / "start", shapes, WORLD_SIZE)
    assert all(torch.equal(start.read(name), weight) for name, weight in oracle.start.items())


def test_ranks_draw_apart(results: Path, oracles: dict[str, Oracle]) -> None:
    """What test_steps_equal_plain_peft compares with would be another network's losses were all ranks' masks the same."""
    same = Oracle(results, "dropout", drawn_apart=False)
    told = json.loads((folder_of(results, (3, "fp32", "dropout")) / "result.json").read_text())["losses"]
    apart, alike = (max(abs(a - b) for a, b in zip(one.losses, told, strict=True)) for one in (same, oracles["dropout"]))
    assert apart > 1e-4 > 1e-5 > alike  # at the start nothing is added yet, so the first losses are the same


def test_a_checkpoint_holds_what_is_trained_and_no_more(results: Path) -> None:
    from safetensors import safe_open

    names = set()
    for rank in range(WORLD_SIZE):
        with safe_open(folder_of(results, (2, "fp32", "lora")) / "saved" / f"rank-{rank:05d}.safetensors", framework="pt") as file:
            names |= set(file.keys())
    assert names and all("lora_" in name for name in names)
    assert {name.split("/")[0] for name in names if "/" in name} == {"exp_avg", "exp_avg_sq"}


def test_every_stage_starts_elsewhere() -> None:
    def start(number: int) -> torch.Tensor:
        model = steps.made_model()
        inject(model, adapter_steps.ADAPTERS["lora"], SEED, number)
        return next(p.detach() for name, p in model.named_parameters() if "lora_A" in name)

    assert torch.equal(start(0), start(0)) and not torch.equal(start(0), start(1))
