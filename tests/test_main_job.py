"""The main job, small and whole: real Ray, DeepSpeed and vLLM; a second run, a changed experiment, a wrong one."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import MainJob
from tests.helpers.groups import Groups


@pytest.fixture(scope="module")
def folder(main_job: MainJob) -> Path:
    return main_job[0]


@pytest.fixture(scope="module")
def first_run(ray_cluster: str, main_job: MainJob, groups: Groups):  # type: ignore[no-untyped-def]
    """(the run, a function that runs the same command with other arguments on the cluster of these tests)."""
    folder, done = main_job

    def run(*arguments: str):  # type: ignore[no-untyped-def]
        return groups.command("trainer", str(folder / "small.yaml"), *arguments, env={"RAY_ADDRESS": ray_cluster})

    return done, run


def test_trains_examines_and_prints_the_table(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    done, _ = first_run
    assert done.code == 0, done.stderr + "".join(p.read_text()[-3000:] for p in (folder / "runs/small/logs").glob("*.log"))
    assert "pit" in done.stdout and "standard" in done.stdout and "report.md" in done.stdout + done.stderr
    report = json.loads((folder / "runs/small/report.json").read_text())
    assert set(report["arms"]) == {"base", "standard", "pit"}
    lines = done.stdout.rstrip().splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["base", "standard", "pit"], "the table ends the output"
    assert max(map(len, lines[-7:])) <= 80
    assert re.search(r"^training \S.*, step [\d,]+ of [\d,]+", done.stderr, re.MULTILINE), done.stderr


def test_memorises_through_the_whole_stack(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Both arms end on, or just after, 40 epochs of 40 train questions: vLLM must find the answers in the exported weights."""
    scores = pq.read_table(next((folder / "runs/small/scores").glob("standard-*.parquet"))).to_pylist()
    train = [row["em"] for row in scores if row["set"] == "train"]
    assert len(train) == 40 and sum(train) / len(train) > 0.9
    base = pq.read_table(next((folder / "runs/small/scores").glob("base-*.parquet"))).to_pylist()
    assert sum(row["em"] for row in base if row["set"] == "train") / 40 < 0.2  # the twin: an untrained model does not


def test_a_second_run_trains_nothing(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    _done, run = first_run
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs/small/stages").rglob("*") if path.is_file()}
    again = run()
    assert again.returncode == 0, again.stderr
    assert "0 to train" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "runs/small/stages").rglob("*") if path.is_file()}


def test_export_is_what_was_trained(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """hf/ loads in transformers and holds the committed fp32 fragments of both ranks, to the bit."""
    from transformers import AutoModelForCausalLM

    from trainer.store.weights import FragmentWeights

    for manifest_path in (folder / "runs/small/stages").glob("*/manifest.json"):
        manifest = json.loads(manifest_path.read_text())
        fragments = FragmentWeights(manifest_path.parent / "weights", manifest["shapes"], 2)
        assert len(list((manifest_path.parent / "weights").iterdir())) == manifest["world_size"] == 2
        model = AutoModelForCausalLM.from_pretrained(manifest_path.parent / "hf")
        for name, weight in model.named_parameters():
            assert torch.equal(weight.detach(), fragments.read(name)), name


def test_arms_share_no_stage_they_should_not(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    arms = json.loads((folder / "runs/small/arms.json").read_text())["arms"]
    assert arms["base"]["stages"] == [] and len(arms["standard"]["stages"]) == 2 and len(arms["pit"]["stages"]) == 2
    assert not set(arms["standard"]["stages"]) & set(arms["pit"]["stages"])
    assert len(list((folder / "runs/small/stages").glob("*/manifest.json"))) == 4


def test_metrics_were_written(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    for path in (folder / "runs/small/stages").glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[-1]["step"] + 1 == json.loads((path.parent / "manifest.json").read_text())["job"]["num_steps"]
        assert all(row["loss"] > 0 and row["grad_norm"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    assert list((folder / "runs/small/tensorboard").rglob("events.*"))


def test_terminal_shows_no_library_chatter(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    done, _ = first_run
    for noise in ("WARNING", "INFO", "pid=", "Traceback"):
        assert noise not in done.stdout + done.stderr, noise
    assert "pid=" in (folder / "runs/small/logs/trainer.log").read_text()


def test_more_workers_than_the_cluster_has_is_refused(first_run) -> None:  # type: ignore[no-untyped-def]
    _, run = first_run
    done = run("seed=1", "trainer.num_workers=20")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: the cluster has")


def test_a_second_driver_is_refused(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    import fcntl

    _, run = first_run
    with (folder / "runs/small/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run()
    assert done.returncode == 2 and "another run is at work" in done.stderr


def test_one_process_without_ray_trains_the_same(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """One process and two ZeRO workers: the same stage keys, the same losses and weights up to fp32 rounding; and a teacher says the same to the bit."""
    from trainer.store.weights import FragmentWeights

    _, run = first_run
    done = run("--no-ray", "--no-exam", f"runs={folder / 'alone'}")
    assert done.returncode == 0 and re.search(r"^training standard .*, step [\d,]+ of [\d,]+", done.stderr, re.MULTILINE), done.stderr
    keys = {path.name for path in (folder / "alone/small/stages").iterdir()}
    assert len(keys) == 4 and keys <= {path.name for path in (folder / "runs/small/stages").iterdir()}
    said = []
    for key in keys:
        ours, theirs = (folder / runs / "small/stages" / key for runs in ("runs", "alone"))
        manifests = [json.loads((stage / "manifest.json").read_text()) for stage in (ours, theirs)]
        losses = [json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])["loss"] for stage in (ours, theirs)]
        if manifests[0]["job"]["parent"] is None:  # later stages start from weights that already differ in the last bits
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)
            said += [manifest["teacher"]["files"] for manifest in manifests if "teacher" in manifest]
        assert manifests[0]["totals"]["tokens"] == manifests[1]["totals"]["tokens"]
        for name in manifests[0]["shapes"]:
            pair = [
                FragmentWeights(stage / "weights", m["shapes"], m["world_size"]).read(name)
                for stage, m in zip((ours, theirs), manifests, strict=True)
            ]
            # Adam turns rounding differences near zero gradients into steps of the size of the rate (3e-3); not a bound on many steps.
            assert torch.nn.functional.cosine_similarity(pair[0].flatten(), pair[1].flatten(), dim=0) > 0.999, name
    assert len(said) == 2 and said[0] == said[1], "what the first model says, by one process and by two workers of Ray"


@pytest.mark.slow
def test_zero_3_trains_the_same(first_run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Sharded parameters from the first moment (zero.Init), a worker group per stage: the first step's loss and norm are ZeRO-2's."""
    _, run = first_run
    done = run("--no-exam", f"runs={folder / 'three'}", "trainer.zero_stage=3", "arms={standard: {preset: standard}}")
    assert done.returncode == 0, done.stderr
    for stage in (folder / "three/small/stages").iterdir():
        manifest = json.loads((stage / "manifest.json").read_text())
        ours, twos = (
            json.loads((f / "metrics.jsonl").read_text().splitlines()[0]) for f in (stage, folder / "runs/small/stages" / stage.name)
        )
        assert manifest["zero_stage"] == 3
        if manifest["job"]["parent"] is None:
            assert ours["loss"] == pytest.approx(twos["loss"], rel=1e-5) and ours["grad_norm"] == pytest.approx(twos["grad_norm"], rel=1e-4)
