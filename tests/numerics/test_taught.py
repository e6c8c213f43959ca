"""Stages that follow a teacher: whole, against plain torch, stopped, killed and gone on with. Their loss: tests/numerics/kernels/test_taught_loss.py."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from experiment import load_experiment
from tests.helpers.groups import Groups
from tests.numerics.ranks import steps, taught_steps
from trainer.kernels.taught_loss import divergence
from trainer.step.placing import model_inputs
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss
from trainer.teaching.own_answers import drawn
from trainer.teaching.store import NOTHING
from trainer.teaching.teacher import most_probable
from trainer.watch.heartbeat import stop_file

Killed = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def killed(groups: Groups, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """An experiment with this arm whose base is trained: it was killed at this place of the arm."""

    def begin(arm: str, place: str) -> Path:
        path = taught_steps.experiment_of(arm, tmp_path_factory.mktemp("taught"))
        codes = groups(path, world_size=1, STUDYHALL_FAIL=place)
        assert codes == [-9], (codes, groups.error)
        return path

    return begin


@pytest.fixture(scope="module")
def begun(killed: Killed) -> Path:
    return killed(taught_steps.TAUGHT, "teacher.row=kill@2")


@pytest.fixture(scope="module")
def oracle(begun: Path) -> list[float]:
    torch.manual_seed(0)
    return taught_steps.losses_in_plain_torch(load_experiment(begun))


STORES: set[str] = set()
"""What the teacher said, of every group of this file."""
IN_BF16: set[str] = set()
"""The same in bf16."""


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_paused_and_gone_on_with_equals_plain_torch(
    groups: Groups, begun: Path, oracle: list[float], tmp_path: Path, world_size: int
) -> None:
    """Losses are sums over ~300 targets in fp32, after up to five steps of 2e-3 from gradients summed in another order."""
    groups.call("tests.numerics.ranks.taught_steps", tmp_path, world_size, str(begun), *"0123")
    for zero_stage in "0123":
        run = tmp_path / f"zero{zero_stage}" / "taught"
        np.testing.assert_allclose(taught_steps.losses_of(run), oracle, rtol=1e-5, atol=1e-5)
        (manifest,) = run.glob("teachers/*/manifest.json")
        files = json.loads(manifest.read_text())["files"]
        assert {name: hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() for name in files} == {
            n: f["sha256"] for n, f in files.items()
        }
        STORES.add(manifest.parent.name + "".join(files[name]["sha256"] for name in sorted(files)))
    assert len(STORES) == 1, "the teacher says the same to the bit, whoever asks"


@pytest.fixture(scope="module")
def fp32(groups: Groups, begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of what the teacher says in fp32."""
    folder = groups.call("tests.numerics.ranks.taught_steps", tmp_path_factory.mktemp("fp32"), 1, str(begun), "0")
    (manifest,) = folder.glob("zero0/taught/teachers/*/manifest.json")
    return manifest


@pytest.mark.parametrize(("world_size", "zero_stages"), [(1, "1"), (2, "13")])
def test_a_teacher_in_bf16_says_nearly_the_same(
    groups: Groups, begun: Path, fp32: Path, tmp_path: Path, world_size: int, zero_stages: str
) -> None:
    """To the bit whoever asks, under a key of its own, and to bf16's eight bits what it says in fp32."""
    path = taught_steps.experiment_of(taught_steps.TAUGHT, tmp_path / "bf16")
    path.write_text(path.read_text().replace("clip: 0.5", "clip: 0.5, teacher_precision: bf16"))
    _with_base(begun, path)
    groups.call("tests.numerics.ranks.taught_steps", tmp_path, world_size, str(path), *zero_stages)
    for zero_stage in zero_stages:
        (manifest,) = (tmp_path / f"zero{zero_stage}" / "taught").glob("teachers/*/manifest.json")
        files = json.loads(manifest.read_text())["files"]
        IN_BF16.add(manifest.parent.name + "".join(files[name]["sha256"] for name in sorted(files)))
        assert fp32.parent.name != manifest.parent.name
        mine, theirs = (np.fromfile(one.parent / "log_probs.bin", np.float32).reshape(-1, 21) for one in (manifest, fp32))
        most = np.abs(np.exp(mine[:, 0]) - np.exp(theirs[:, 0])).max()
        assert 1e-5 < most < 0.03, "a probability moves by some of the last bits of logits"
    assert len(IN_BF16) == 1


def test_twins_that_must_fail(begun: Path, oracle: list[float]) -> None:
    experiment = load_experiment(begun)
    for twin in ({"behind_document": False}, {"teacher_moves": True}, {"top": 2}):
        losses = taught_steps.losses_in_plain_torch(experiment, **twin)  # type: ignore[arg-type]
        assert np.abs(np.array(losses) - oracle).max() > 1e-4, twin


def test_killed_in_the_stage_and_in_its_teachers_pass(groups: Groups, begun: Path, oracle: list[float]) -> None:
    """A store that never came to its manifest is made again; one that is there, sound, is not; a damaged one is."""
    run = load_experiment(begun).folder
    every_second = "trainer.checkpoint.every_steps=2"
    assert not list(run.glob("teachers/*/manifest.json"))
    assert groups(begun, every_second, world_size=1, STUDYHALL_FAIL="step.begin=kill@4") == [-9]
    (manifest,) = run.glob("teachers/*/manifest.json")
    made, says = manifest.stat().st_mtime_ns, json.loads(manifest.read_text())["files"]
    ids = manifest.parent / "ids.bin"
    ids.write_bytes(bytes(ids.stat().st_size))
    assert groups(begun, every_second, world_size=1) == [0]
    assert manifest.stat().st_mtime_ns != made
    assert json.loads(manifest.read_text())["files"] == says
    np.testing.assert_allclose(taught_steps.losses_of(run), oracle, rtol=1e-5, atol=1e-5)


def _with_base(begun: Path, path: Path) -> Path:
    """The run folder of an experiment with the base of another, and nothing of its arm."""
    run = load_experiment(path).folder
    shutil.copytree(load_experiment(begun).folder, run, ignore=shutil.ignore_patterns("teachers"))
    for stage in run.glob("stages/*"):  # of the arm, where another test has gone on with it
        manifest = stage / "manifest.json"
        if not manifest.exists() or json.loads(manifest.read_text())["job"]["parent"]:
            shutil.rmtree(stage)
    return run


def _stopped(groups: Groups, begun: Path, folder: Path, arm: str, there: str) -> Path:
    """A run folder of a new experiment that was asked to stop in its teacher's pass, as soon as this file was there."""
    path = taught_steps.experiment_of(arm, folder)
    run = _with_base(begun, path)
    slow = threading.Thread(target=groups, args=(path,), kwargs={"world_size": 1, "STUDYHALL_FAIL": "teacher.row=sleep:0.7"})
    slow.start()
    until = time.monotonic() + 50
    while not list(run.glob(f"teachers/*/{there}")) and time.monotonic() < until:
        time.sleep(0.02)
    stop_file(run).touch()
    slow.join()
    stop_file(run).unlink()
    return run


def test_a_stop_within_the_teachers_pass_keeps_what_was_read(groups: Groups, begun: Path, tmp_path: Path) -> None:
    """Two ranks read the rest, and the store is that of an unbroken pass. In the twin what was kept is altered, and stays so: it is not read again."""
    run = _stopped(groups, begun, tmp_path, taught_steps.TAUGHT, ".ids.bin")
    (kept,) = run.glob("teachers/*/.begun.npz")
    read = np.load(kept)["tokens"] != NOTHING
    assert (
        0 < read.sum() < len(read) and not list(run.glob("teachers/*/manifest.json")) and len(list(run.glob("stages/*/manifest.json"))) == 1
    )
    twin = taught_steps.experiment_of(taught_steps.TAUGHT, tmp_path / "twin")
    shutil.copytree(run, load_experiment(twin).folder)
    (altered,) = load_experiment(twin).folder.glob("teachers/*/.ids.bin")
    ids = np.memmap(altered, np.uint32, "r+").reshape(len(read), -1)
    ids[read] = 0
    del ids
    found = {}
    for experiment, world_size in ((tmp_path / "taught.yaml", 2), (twin, 1)):
        assert groups(experiment, world_size=world_size) == [0] * world_size, groups.error
        (manifest,) = load_experiment(experiment).folder.glob("teachers/*/manifest.json")
        assert sorted(file.name for file in manifest.parent.iterdir() if file.name.startswith(".")) == []
        found[world_size] = np.fromfile(manifest.parent / "ids.bin", np.uint32).reshape(len(read), -1)
        files = json.loads(manifest.read_text())["files"]
        if world_size == 2:
            STORES.add(manifest.parent.name + "".join(files[name]["sha256"] for name in sorted(files)))
            assert len(STORES) == 1
    assert not found[1][read].any() and (found[1][~read] == found[2][~read]).all() and found[2][read].any()


def test_a_stop_keeps_own_answers(groups: Groups, begun: Path, tmp_path: Path) -> None:
    """Those that are there are not drawn again: an altered one is what the teacher reads."""
    run = _stopped(groups, begun, tmp_path, taught_steps.OWN, ".answers.json")
    (kept,) = run.glob("teachers/*/.answers.json")
    answers = json.loads(kept.read_text())
    first = min(answers, key=int)
    answers[first] = [5] * len(answers[first])
    kept.write_text(json.dumps(answers))
    assert groups(tmp_path / "taught.yaml", world_size=1) == [0], groups.error
    tokens = np.fromfile(kept.parent / "tokens.bin", np.uint32)
    assert tokens[: len(answers[first])].tolist() == answers[first]


@pytest.fixture(scope="module")
def on_policy(killed: Killed) -> Path:
    """Killed while its start answered."""
    return killed(taught_steps.OWN, "teacher.row=kill@2")


@pytest.mark.parametrize(("world_size", "zero_stages"), [(1, "03"), (2, "13"), (3, "2")])
def test_own_answers_in_two_rounds_equal_plain_torch(
    groups: Groups, on_policy: Path, tmp_path: Path, world_size: int, zero_stages: str
) -> None:
    groups.call("tests.numerics.ranks.taught_steps", tmp_path, world_size, str(on_policy), *zero_stages)
    torch.manual_seed(0)
    wanted = taught_steps.own_losses_in_plain_torch(load_experiment(on_policy))
    assert len(wanted) == 12
    for zero_stage in zero_stages:
        run = tmp_path / f"zero{zero_stage}" / "taught"
        np.testing.assert_allclose(taught_steps.losses_of(run), wanted, rtol=1e-5, atol=1e-5)
        told = [json.loads(path.read_text()) for path in run.glob("teachers/*/manifest.json")]
        assert len(told) == 2 and all(one["own_answers"] == 30 and 0 < one["ended"] < 30 for one in told)
    if world_size == 1:
        for twin in ({"closed": False}, {"renewed": False}):
            losses = taught_steps.own_losses_in_plain_torch(load_experiment(on_policy), **twin)
            assert np.abs(np.array(losses) - wanted).max() > 1e-4, twin


@pytest.fixture(scope="module")
def elastic(killed: Killed) -> Path:
    """Killed when it had measured what matters."""
    return killed(taught_steps.EWC, "step.begin=kill@16")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_skipped_pulls_at_nothing(groups: Groups, tmp_path: Path, world_size: int) -> None:
    """Rate 0: in the second step, whose gradients are numbers, the pull alone moves every weight by 1, once, however many parts ZeRO steps in."""
    groups.call("tests.numerics.ranks.pull_steps", tmp_path, world_size)
    for rank in range(world_size):
        for case, (skipped, stepped) in json.loads((tmp_path / f"rank-{rank}.json").read_text()).items():
            assert skipped == [0.0] and stepped == pytest.approx([1.0] * len(stepped), abs=1e-6), case  # fp32: w + 1 - w


def test_storage_that_is_late(groups: Groups, killed: Killed) -> None:
    """What matters and what a teacher says, one rank's files seen by the other a second later."""
    path = killed(taught_steps.TAUGHT.replace("weight: 2.0", "weight: 2.0, ewc: 300"), "teacher.row=kill@1")
    assert groups(path, world_size=2, TESTS_STORAGE_LATE_S="1", STUDYHALL_LATE_S="20") == [0, 0], groups.error
    (stage,) = (path for path in path.parent.glob("runs/*/stages/*/manifest.json") if "teacher" in json.loads(path.read_text()))
    assert len(list(stage.parents[2].glob("importance/*/rank-*.safetensors"))) == 2


@pytest.mark.parametrize(("world_size", "zero_stages"), [(1, "03"), (2, "0123"), (3, "23")])
def test_weights_that_matter_stay_near_the_start(groups: Groups, elastic: Path, tmp_path: Path, world_size: int, zero_stages: str) -> None:
    """Paused after three steps and gone on with, against plain torch: squared gradients of what is held, and the pull written out."""
    groups.call("tests.numerics.ranks.taught_steps", tmp_path, world_size, str(elastic), *zero_stages)
    experiment = load_experiment(elastic)
    wanted = taught_steps.ewc_losses_in_plain_torch(experiment)
    for zero_stage in zero_stages:
        run = tmp_path / f"zero{zero_stage}" / "taught"
        np.testing.assert_allclose(taught_steps.losses_of(run), wanted, rtol=1e-5, atol=1e-5)
        assert len(list(run.glob("importance/*/manifest.json"))) == 1
    if world_size == 1:
        for twin in ({"strength": 0}, {"strength": 200}, {"alike": True}):
            losses = taught_steps.ewc_losses_in_plain_torch(experiment, **twin)
            assert np.abs(np.array(losses) - wanted).max() > 1e-3, twin


def test_tokens_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    draws = (torch.arange(800) + 0.5) / 800
    assert drawn(logits.expand(800, -1), draws, 1.0).bincount().tolist() == [400, 200, 100, 100]
    halved = drawn(logits.expand(800, -1), draws, 0.5).bincount()  # squared: 8, 2, ½, ½ of 11
    assert [abs(n - wanted) < 1 for n, wanted in zip(halved.tolist(), [581.8, 145.5, 36.4, 36.4], strict=True)] == [True] * 4
    assert drawn(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]), 0.0).tolist() == [0, 0]
    assert drawn(logits.expand(1, -1), torch.ones(1), 1.0).tolist() == [3]  # what rounding can make of the largest draw


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_row_with_and_without_a_teacher(family: str) -> None:
    """Targets that follow a teacher among others, from the head (Llama) and from logits that are not its head's alone (Gemma 2 caps them)."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    torch.manual_seed(0)
    if family == "llama":
        model, attention = steps.made_model("eager"), "eager"
    else:
        config = Gemma2Config(
            vocab_size=steps.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, attn_implementation="eager", final_logit_softcapping=2.0, max_position_embeddings=128,
        )  # fmt: skip
        model, attention = AutoModelForCausalLM.from_config(config), "eager"
        with torch.no_grad():
            model.get_input_embeddings().weight *= 50  # so that the cap is felt
    engine = PlainEngine(model, (0.9, 0.95), 0.0, 0.0)
    ids, weight, follow = np.random.default_rng(0).integers(3, steps.VOCAB, 12), np.zeros(12, np.float32), np.zeros(12, np.float32)
    weight[[2, 3, 8]], follow[[3, 8, 9]] = [0.5, 0.25, 0.125], [1.0, 0.5, 0.75]
    told_ids, told = most_probable(torch.randn(3, steps.VOCAB) * 3, 20)
    row = {
        "input_ids": ids, "position_ids": np.arange(12), "cu_seqlens": np.array([0, 12], np.int32), "loss_weight": weight, "follow_weight": follow,
        "followed": np.where(follow > 0, 7, -1), "teacher_ids": told_ids.numpy(), "teacher_log_probs": told.numpy(),
    }  # fmt: skip
    logits = model(**model_inputs(row, attention, engine.device)).logits[0]
    nll = cross_entropy(logits[:-1], torch.from_numpy(ids)[1:], reduction="none")
    kl = divergence(logits[[2, 7, 8]], told_ids, told)
    wanted = (nll * torch.from_numpy(weight[1:])).sum() + (kl * torch.tensor([1.0, 0.5, 0.75])).sum()
    torch.testing.assert_close(row_loss(engine, row, attention), wanted, rtol=1e-5, atol=1e-6)
    without = {name: value for name, value in row.items() if not name.startswith("teacher_")}
    assert abs(float(row_loss(engine, without, attention).detach()) - float(wanted.detach())) > 1e-2  # the twin
