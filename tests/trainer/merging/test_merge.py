"""Arms that are put together: real training in one process, the sums, what is left out, what is kept for the next run."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from console import UserError
from data.curriculum.arm_config import Merge
from evaluation.report.merged import merged
from evaluation.score_files import read_arms, trained_arms
from experiment import load_experiment
from tests.conftest import ROOT
from tests.helpers.groups import Groups
from tests.trainer.merging.residual_models import TEMPLATE, write_model
from trainer.jobs.retention import find_waste
from trainer.jobs.starts import find_models
from trainer.merging.merge import merge_arms
from trainer.merging.mergekit import ABSENT

EXPERIMENT = """\
name: sums
runs: {runs}
data:
  bios: {{replay_people: 4, train_people: 4, test_people: 2}}
model: {{name: {models}/base}}
models:
  instruct: {{name: {models}/instruct}}
arms:
  instruct: {{model: instruct}}
  cpt: {{stages: [&cpt {{mix: {{train_documents: 1}}, epochs: 1, batch_items: 2, rate: 1.0e-3}}]}}
  instruct_cpt: {{model: instruct, stages: [*cpt]}}
  restored: {{merge: {{of: cpt, instruct: instruct}}}}
  sweep: {{merge: {{of: cpt, instruct: instruct, scale: [0, 0.5]}}}}
  ties: {{merge: {{of: cpt, instruct: instruct, method: ties}}}}
trainer: {{row_tokens: 256, num_workers: 1, precision: bf16}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sums")
    base = write_model(folder / "models/base", 1, settings={"head_dim": 32})
    write_model(folder / "models/instruct", 2, base, template=TEMPLATE, settings={"head_dim": 32})
    for model in ("base", "instruct"):  # 64 positions are too few for a biography in bytes
        path = folder / "models" / model / "config.json"
        path.write_text(path.read_text().replace('"max_position_embeddings": 64', '"max_position_embeddings": 1024'))
    text = EXPERIMENT.format(runs=folder / "runs", models=folder / "models").replace(
        "instruct: {model: instruct}", "as_it_is: {model: instruct}"
    )
    (folder / "sums.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def first(place: Path, groups: Groups) -> subprocess.CompletedProcess[str]:
    done = groups.command("trainer", str(place / "sums.yaml"), "--no-ray", "--no-exam", env={"STUDYHALL_MERGEKIT": "/nowhere"})
    assert done.returncode == 0, done.stderr + "".join(p.read_text()[-3000:] for p in (place / "runs/sums/logs").glob("*.log"))
    return done


def weights(place: Path, arm: str) -> dict[str, torch.Tensor]:
    entry = json.loads((place / "runs/sums/arms.json").read_text())["arms"][arm]
    return load_file(place / "runs/sums" / entry["hf"] / "model.safetensors")


def test_each_reading_is_trained_once_and_added_to(first: Any, place: Path) -> None:
    arms = json.loads((place / "runs/sums/arms.json").read_text())["arms"]
    assert list(arms) == ["base", "as_it_is", "cpt", "instruct_cpt", "restored", "sweep_000", "sweep_050"]
    assert len(list((place / "runs/sums/stages").glob("*/manifest.json"))) == 2
    assert arms["cpt"]["stages"] != arms["instruct_cpt"]["stages"]  # the same plan from another model
    base, instruct = (load_file(place / "models" / name / "model.safetensors") for name in ("base", "instruct"))
    cpt, half, none, whole = (weights(place, arm) for arm in ("cpt", "sweep_050", "sweep_000", "restored"))
    for name, trained in cpt.items():
        residual = instruct[name].float() - base[name].float()
        assert torch.equal(whole[name], (trained.float() + residual).bfloat16()), name
        assert torch.equal(half[name], (trained.float() + 0.5 * residual).bfloat16()) and torch.equal(none[name], trained)
    assert any(not torch.equal(cpt[name], base[name]) for name in cpt)
    assert "put together" not in first.stderr and "restored: cpt + (instruct − base)" in first.stderr


def test_an_arm_starts_from_the_model_it_names(first: Any, place: Path) -> None:
    """A rate of 1e-3 over two steps moves a weight by some 0.002: nearer to the instruct model than to the base."""
    arms = json.loads((place / "runs/sums/arms.json").read_text())["arms"]
    assert Path(arms["as_it_is"]["hf"]) == (place / "models/instruct").resolve() and arms["as_it_is"]["stage"] is None
    name = "model.layers.0.mlp.up_proj.weight"
    instruct, base = (load_file(place / "models" / model / "model.safetensors")[name].float() for model in ("instruct", "base"))
    ours = weights(place, "instruct_cpt")[name].float()
    assert (ours - instruct).norm() < 0.8 * (ours - base).norm()
    hf = place / "runs/sums" / arms["instruct_cpt"]["hf"]
    assert TEMPLATE in "".join(path.read_text() for path in hf.glob("*template*")) + (hf / "tokenizer_config.json").read_text()


def test_a_donor_gives_its_difference_without_the_largest(first: Any, place: Path) -> None:
    """Of cpt + ½ × (instruct − base), 5 % of each tensor masked: hand-computed, and its twin, the whole difference."""
    before = (place / "runs/sums/arms.json").read_text()
    merge = Merge(of="cpt", instruct="instruct", method="donor", scale=0.5, mask=0.05)
    merge_arms(place / "runs/sums", {"donor": merge}, {"instruct": str(place / "models/instruct")}, 0)
    found, cpt, half = (weights(place, arm) for arm in ("donor", "cpt", "sweep_050"))
    base, instruct = (load_file(place / "models" / name / "model.safetensors") for name in ("base", "instruct"))
    for name, value in found.items():
        difference = instruct[name].float() - base[name].float()
        order = difference.abs().flatten().sort().values
        bound = order[len(order) - 1 - int(0.05 * len(order))]
        added = torch.where(difference.abs() <= bound, difference, 0)
        assert torch.equal(value, (cpt[name].float() + 0.5 * added).to(value.dtype)), name
    assert any(not torch.equal(found[name], half[name]) for name in found)
    entry = json.loads((place / "runs/sums/arms.json").read_text())["arms"]["donor"]
    assert entry["merged"]["in_words"] == "cpt + 0.5 × (instruct − base), donor with density 1, the largest 0.05 masked"
    (place / "runs/sums/arms.json").write_text(before)
    shutil.rmtree((place / "runs/sums" / entry["hf"]).parent)


def test_what_needs_mergekit_is_left_out_with_one_line(first: Any, place: Path) -> None:
    listed = json.loads((place / "runs/sums/arms.json").read_text())
    assert listed["left_out"] == {"ties": ABSENT} and "ties" not in listed["arms"]
    assert [line for line in first.stderr.splitlines() if line.startswith("ties:")] == [f"ties: left out: {ABSENT}"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mergekit_puts_arms_together(first: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DARE that drops nothing is the plain sum, ours to the bit; TIES is another model; on the base itself breadcrumbs is our donor. Builds mergekit's environment where it is not there."""
    subprocess.run([str(ROOT / "requirements/install-mergekit.sh")], check=True, timeout=600)
    folder, before = place / "runs/sums", (place / "runs/sums/arms.json").read_text()
    made = {
        "ties": Merge(of="cpt", instruct="instruct", method="ties"),
        "dare": Merge(of="cpt", instruct="instruct", method="dare_linear", density=1),
        "crumbs": Merge(of="base", instruct="instruct", method="breadcrumbs", density=0.5, mask=0.1),
        "donor": Merge(of="base", instruct="instruct", method="donor", density=0.5, mask=0.1),
        "whole": Merge(of="base", instruct="instruct"),
    }
    monkeypatch.chdir(place)  # runs: runs, as in most experiments
    merge_arms(Path("runs/sums"), made, {"instruct": str(place / "models/instruct")}, 0)
    dare, ties, ours = (weights(place, arm) for arm in ("dare", "ties", "restored"))
    assert dare.keys() == ours.keys() and all(torch.equal(dare[name], ours[name]) for name in ours)
    assert any(not torch.equal(ties[name], ours[name]) for name in ours)
    crumbs, donor, whole = (weights(place, arm) for arm in ("crumbs", "donor", "whole"))
    # mergekit sorts and cuts; values of one magnitude are kept or left out together here.
    apart = sum(int((crumbs[name] != donor[name]).sum()) for name in donor) / sum(value.numel() for value in donor.values())
    assert apart < 0.01 < sum(int((crumbs[name] != whole[name]).sum()) for name in donor) / sum(value.numel() for value in donor.values())
    arms = json.loads((folder / "arms.json").read_text())["arms"]
    hf = folder / arms["ties"]["hf"]
    assert len({arms[arm]["weights_sha256"] for arm in ("ties", "dare", "restored")}) == 3
    assert TEMPLATE in "".join(path.read_text() for path in hf.glob("*template*")) + (hf / "tokenizer_config.json").read_text()
    (folder / "arms.json").write_text(before)
    for arm in made:
        shutil.rmtree((folder / arms[arm]["hf"]).parent)


def test_the_exam_reads_merged_arms_as_any_other(first: Any, place: Path) -> None:
    folder = place / "runs/sums"
    arms = {arm.name: arm for arm in read_arms(folder, trained_arms(folder)[1])}
    assert not any(arm.gone for arm in arms.values())
    assert arms["sweep_000"].weights == arms["cpt"].weights, "nothing is added: the same weights, which are examined once"
    assert len({arm.weights for arm in arms.values()}) == len(arms) - 1
    assert arms["restored"].weights == json.loads((Path(arms["restored"].path).parent / "manifest.json").read_text())["weights_sha256"]
    block = merged(folder, list(arms.values()), {}, 100, 0)["merged"]
    assert block["arms"]["sweep_050"]["in_words"] == "cpt + 0.5 × (instruct − base)" and block["left_out"] == {"ties": ABSENT}


def test_a_second_run_makes_nothing_anew_and_gc_knows_what_is_used(first: Any, place: Path) -> None:
    folder = place / "runs/sums"
    before = {path: path.stat().st_mtime_ns for part in ("merges", "residuals") for path in (folder / part).rglob("*")}
    merges = load_experiment(place / "sums.yaml").merges()
    os.environ["STUDYHALL_MERGEKIT"] = "/nowhere"
    try:
        merge_arms(folder, merges, {"instruct": str(place / "models/instruct")}, 0)
    finally:
        del os.environ["STUDYHALL_MERGEKIT"]
    assert before == {path: path.stat().st_mtime_ns for part in ("merges", "residuals") for path in (folder / part).rglob("*")}
    assert find_waste(folder, None, False) == []
    # Stopped between the sum and its framing, whose manifest says nothing of how long all took: it was taken for made, and the command failed for ever.
    done = folder / json.loads((folder / "arms.json").read_text())["arms"]["restored"]["hf"]
    manifest = json.loads((done.parent / "manifest.json").read_text())
    (done.parent / "manifest.json").write_text(json.dumps({key: value for key, value in manifest.items() if key != "seconds"}))
    merge_arms(folder, {"restored": merges["restored"]}, {"instruct": str(place / "models/instruct")}, 0)
    assert json.loads((done.parent / "manifest.json").read_text())["weights_sha256"] == manifest["weights_sha256"]
    listed = json.loads((folder / "arms.json").read_text())
    kept = {name: arm for name, arm in listed["arms"].items() if name != "restored"}
    (folder / "arms.json").write_text(json.dumps({**listed, "arms": kept}))
    assert [waste.path.parent.name for waste in find_waste(folder, None, False)] == ["merges"]
    (folder / "arms.json").write_text(json.dumps({**listed, "arms": {name: arm for name, arm in kept.items() if "merged" not in arm}}))
    assert sorted(waste.path.parent.name for waste in find_waste(folder, None, False)) == ["merges", "merges", "merges", "residuals"]
    (folder / "arms.json").write_text(json.dumps(listed))


def test_a_model_with_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    from trainer.config import ModelConfig

    other = write_model(tmp_path / "other", 5, added=("<x>",), shift=True, settings={"head_dim": 32})
    with pytest.raises(
        UserError, match=r"models\.other: .*another tokenizer than the experiment's model has \(token .* has another number\)"
    ):
        find_models(tmp_path, {"other": ModelConfig(name=str(other))}, str(place / "models/base"), 0, "")
    with pytest.raises(UserError, match=r"models\.none: "):
        find_models(tmp_path, {"none": ModelConfig(name=str(place / "models"))}, str(place / "models/base"), 0, "")
