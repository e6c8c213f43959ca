"""DeepSpeed's steps equal plain torch's: any ZeRO stage, 1, 2 and 4 workers, uneven micro-steps, clipping."""

import json
from pathlib import Path

import pytest
import torch

from data.rows.flat_rows import step_rows
from tests.helpers.groups import Groups
from tests.numerics.ranks import rounding, steps
from trainer.step.plain import PlainEngine
from trainer.step.step import optimiser_step
from trainer.store.weights import FragmentWeights

SHAPES = {name: list(p.shape) for name, p in steps.made_model().named_parameters()}


def world_size_of(results: Path) -> int:
    return len(list(results.glob("*.log")))


@pytest.fixture(scope="module", params=[1, 2, 3, 4])  # 3 divides few parameters: the last shares are padded
def results(request: pytest.FixtureRequest, groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process group per world size runs every ZeRO stage."""
    return groups.call("tests.numerics.ranks.steps", tmp_path_factory.mktemp(f"world{request.param}"), request.param)


@pytest.fixture(scope="module")
def oracle() -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    engine = PlainEngine(steps.made_model(), steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip)
    losses, norms = steps.run_steps(engine, 0, 1)
    return [float(loss) for loss in losses], norms, {name: p.detach() for name, p in engine.module.named_parameters()}


@pytest.mark.parametrize("case", ["zero0", "zero1", "zero2", "zero3", "static", "solo"])
def test_fp32_equals_plain_torch(results: Path, oracle: tuple, case: str) -> None:  # type: ignore[type-arg]
    """Any ZeRO stage; rows of static shapes, whatever the world size; one process alone, where nothing is sharded."""
    if case == "solo" and world_size_of(results) > 1:
        return
    losses, norms, weights = oracle
    folder = results / f"{case}-fp32"
    got = json.loads((folder / "result.json").read_text())
    # fp32 sums in another order; the updates themselves are of size 3e-3, so 1e-5 would show one wrong step
    torch.testing.assert_close(torch.tensor(got["losses"]), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(got["norms"]), torch.tensor(norms), rtol=1e-5, atol=1e-5)
    stored = FragmentWeights(folder / "end", SHAPES, world_size_of(results))
    for name, weight in weights.items():
        torch.testing.assert_close(stored.read(name), weight, rtol=0, atol=1e-5)


BF16 = ["zero1", "zero2", "zero3", "solo"]


@pytest.mark.parametrize("case", BF16)
def test_bf16_starts_from_exact_fp32_masters(results: Path, case: str) -> None:
    """The committed fp32 weights, not their bf16 rounding, are what the next stage starts from."""
    if case == "solo" and world_size_of(results) > 1:
        return
    model = steps.made_model()
    stored = FragmentWeights(results / f"{case}-bf16" / "start", SHAPES, world_size_of(results))
    for name, weight in model.named_parameters():
        assert torch.equal(stored.read(name), weight.detach()), name
    rounded = {name: weight.detach().bfloat16().float() for name, weight in model.named_parameters()}
    assert any(not torch.equal(rounded[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("case", BF16)
def test_bf16_masters_move_like_fp32(results: Path, oracle: tuple, case: str) -> None:  # type: ignore[type-arg]
    if case == "solo" and world_size_of(results) > 1:
        return
    start = dict(steps.made_model().named_parameters())
    stored = FragmentWeights(results / f"{case}-bf16" / "end", SHAPES, world_size_of(results))
    moved = torch.cat([(stored.read(name) - start[name].detach()).flatten() for name in SHAPES])
    expected = torch.cat([(weight - start[name].detach()).flatten() for name, weight in oracle[2].items()])
    # Four steps of Adam: gradients near zero change sign in bf16, the rest of the update must agree.
    assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > rounding.DIRECTION
    a_hundredth_wrong = torch.where(torch.arange(len(moved)) % 100 == 0, -moved, moved)  # the twin
    assert torch.nn.functional.cosine_similarity(a_hundredth_wrong, expected, dim=0) < rounding.DIRECTION


def test_one_process_in_bf16_is_deepspeeds_zero_1_to_the_bit(results: Path) -> None:
    """But for what DeepSpeed rounds on the way: its bucket holds the fp32 sums of gradients in bf16. Unclipped: it sums the norm in another order."""
    if world_size_of(results) > 1:
        return
    told, masters = {}, {}
    for kind in ("solo", "rounded", "zero1"):
        folder = results / f"{kind}-bf16-unclipped"
        told[kind] = json.loads((folder / "result.json").read_text())
        masters[kind] = FragmentWeights(folder / "end", SHAPES, 1)
    assert told["rounded"]["losses"] == told["zero1"]["losses"]
    # fp32 sums of 20,000 squares
    torch.testing.assert_close(torch.tensor(told["rounded"]["norms"]), torch.tensor(told["zero1"]["norms"]), rtol=1e-6, atol=0)
    for name in SHAPES:
        assert torch.equal(masters["rounded"].read(name), masters["zero1"].read(name)), name
    assert any(not torch.equal(masters["solo"].read(name), masters["zero1"].read(name)) for name in SHAPES)  # the twin


def test_naive_mean_of_micro_batches_is_something_else(oracle: tuple) -> None:  # type: ignore[type-arg]
    """The twin: averaging per-micro-batch means over-weights items that share a row with few others."""
    engine = PlainEngine(steps.made_model(), steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip)
    rows = step_rows(steps.made_plan(), steps.made_store(), 0, 0, 1, steps.CAPACITY, "example")
    assert len(rows) > 1
    naive = [{**row, "loss_weight": (row["loss_weight"] > 0) / max(1, (row["loss_weight"] > 0).sum()) / len(rows)} for row in rows]
    for row in naive:
        row["loss_weight"] = row["loss_weight"].astype("float32")
    loss, norm = optimiser_step(engine, naive, 1e-3, "by_item")
    assert abs(float(loss) - oracle[0][0]) > 1e-3
    assert abs(norm - oracle[1][0]) > 1e-3
