"""Which arms a run folder holds, and the files of their scores."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from console import UserError
from data.records import Corpus
from data.rows.framing import template_of
from evaluation.config import ExamConfig
from evaluation.exam import build_exam, tokenise
from evaluation.score_files import is_scored, read_arms, read_score, score_stem, trained_stages, write_score
from evaluation.sitting import sit
from tests.evaluation.test_exam import Letters, Parrot, corpus


def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "stages" / "k1" / "hf").mkdir(parents=True)
    (tmp_path / "stages" / "k1" / "manifest.json").write_text('{"weights_sha256": "w1"}')
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.safetensors").write_bytes(b"123")
    arms = {
        "base": {"hf": "foreign", "stage": None, "steps": 0},
        "pit": {"hf": "stages/k1/hf", "stage": "k1", "steps": 5},
        "hub": {"hf": "someone/model", "stage": None, "steps": 0},
        "lost": {"hf": "stages/k9/hf", "stage": "k9", "steps": 5},
    }
    (tmp_path / "arms.json").write_text(json.dumps({"experiment": "x", "records_sha256": "r", "arms": arms}))
    return tmp_path


def test_arms_are_named_by_their_weights(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    base, pit, hub, lost = read_arms(folder, "r")
    assert (pit.weights, pit.path, pit.gone) == ("w1", str(folder / "stages/k1/hf"), False)
    assert (hub.weights, hub.path, hub.gone) == ("hub:someone/model@", "someone/model", False)
    assert lost.gone
    (folder / "foreign" / "model.safetensors").write_bytes(b"1234")
    assert read_arms(folder, "r")[0].weights != base.weights
    assert read_arms(folder, "r")[1].weights == pit.weights


def test_stages_within_arms_are_examined_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for key in ("k0", "k2"):
        (folder / "stages" / key / "hf").mkdir(parents=True)
        (folder / "stages" / key / "manifest.json").write_text(json.dumps({"weights_sha256": f"w-{key}"}))
    described = json.loads((folder / "arms.json").read_text())
    described["arms"]["pit"]["stages"] = ["k0", "k2", "k1"]
    described["arms"]["lost"]["stages"] = ["k0", "k2", "k9"]
    (folder / "arms.json").write_text(json.dumps(described))
    stages = trained_stages(folder, read_arms(folder, "r"))
    assert [(s.name, s.weights, s.path, s.gone) for s in stages] == [
        (f"stage-{key}", f"w-{key}", str(folder / "stages" / key / "hf"), False) for key in ("k0", "k2")
    ]


def test_without_arms_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no trained arms in .*; run python -m trainer"):
        read_arms(tmp_path, "r")


def test_the_key_follows_weights_questions_and_settings_only(tmp_path: Path) -> None:
    pit = read_arms(run_folder(tmp_path), "r")[1]
    config = ExamConfig()

    def stem(config: ExamConfig = config, seed: int = 0, data: Corpus | None = None, weights: str = "w1") -> Path:
        return score_stem(tmp_path, replace(pit, weights=weights), build_exam(data or corpus(), config, seed).fingerprint())

    same = ExamConfig(resamples=100, compare_to="mix", gpus=0, kv_cache_gib=2, timeout_s=9, test_questions=6)
    assert stem() == stem(same) == stem(seed=5)  # all questions are asked: the seed chooses nothing
    reworded = corpus()
    first = reworded.part("test").questions[0]
    reworded.part("test").questions[0] = replace(first, answers=("Somebody else",))
    others = [stem(ExamConfig(answer_tokens=8)), stem(ExamConfig(test_questions=5)), stem(data=reworded), stem(weights="w2")]
    others += [stem(ExamConfig(train_questions=3), seed) for seed in (0, 1)]
    assert len({stem(), *others}) == 7


def test_an_arms_wording_is_in_its_key_and_scores_from_before_stay(tmp_path: Path) -> None:
    exam = build_exam(corpus(), ExamConfig(), seed=0)
    asked = [[name, q.id, q.doc_id, f"Question: {q.question} Answer:", q.answers] for name, q in exam.questions]
    before = json.dumps([asked, [[d.id, d.text] for d in exam.documents], exam.answer_tokens, exam.dtype, 4096])
    assert exam.fingerprint("pit") == exam.fingerprint() == hashlib.sha256(before.encode()).hexdigest()
    folder = run_folder(tmp_path)
    old = read_arms(folder, "r")[1]
    trained = json.loads((folder / "arms.json").read_text())
    trained["arms"]["pit"]["template"] = "chat"
    (folder / "arms.json").write_text(json.dumps(trained))
    new = read_arms(folder, "r")[1]
    assert (old.template, new.template) == ("pit", "chat")
    assert score_stem(folder, old, exam.fingerprint(old.template)) != score_stem(folder, new, exam.fingerprint(new.template))


def test_a_stage_within_an_arm_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    """Its entry says nothing: the manifests do, from the stage back to the first."""
    base = {"epochs": 1, "batch_items": 1, "rate": 1.0}
    stages = [{"mix": {"train_documents": 1}}, {"mix": {"train_questions": 1}, "template": "alpaca"}, {"mix": {"test_documents": 1}}]
    for n, stage in enumerate(stages):
        folder = tmp_path / "stages" / f"k{n}"
        (folder / "hf").mkdir(parents=True)
        manifest = {"weights_sha256": f"w{n}", "job": {"parent": f"k{n - 1}" if n else None, "stage": {**stage, **base}}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    arms = {f"stage-k{n}": {"hf": f"stages/k{n}/hf", "stage": f"k{n}"} for n in range(3)}
    (tmp_path / "arms.json").write_text(json.dumps({"experiment": "x", "records_sha256": "r", "arms": arms}))
    assert [arm.template for arm in read_arms(tmp_path, "r")] == ["pit", "alpaca", "alpaca"]
    assert template_of(tmp_path / "stages" / "k1" / "hf") == "alpaca"  # `ask` and `examine`, given the folder alone
    assert template_of(tmp_path) == template_of(Path("acme/tiny")) == "pit"


def test_a_score_is_whole_or_absent(tmp_path: Path) -> None:
    exam = build_exam(corpus(), ExamConfig(), seed=0)
    rows = sit(exam, tokenise(exam, Letters(), None), Parrot(), 0, lambda n: None).rows
    random.Random(0).shuffle(rows)
    stem = tmp_path / "scores" / "pit-0123"
    assert read_score(stem) is None
    write_score(stem, "pit", 3, rows, {"documents": []})
    score = read_score(stem)
    assert score is not None
    assert score.rows == [{"arm": "pit", "seed": 3, **row} for row in rows]
    assert sorted(p.name for p in stem.parent.iterdir()) == ["pit-0123.json", "pit-0123.parquet"]
    stem.with_name("pit-0123.json").unlink()  # killed between the two renames
    assert read_score(stem) is None
    assert not is_scored(stem)


def test_arms_of_other_records_are_not_examined(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other records"):
        read_arms(run_folder(tmp_path), "another corpus")


@pytest.mark.parametrize("torn", ["parquet", "json"])
@pytest.mark.parametrize("left", [0, 7, 0.6])
def test_torn_score_files_are_absent(torn: str, left: float, tmp_path: Path) -> None:
    """A full disk, or a copy that broke off: the arm is examined again."""
    stem = tmp_path / "scores" / "pit-0123456789abcdef"
    write_score(stem, "pit", 0, [{"set": "test", "question_id": "q", "em": 1.0}], {"weights": "w"})
    assert is_scored(stem) and (read_score(stem) or 0)
    path = stem.with_name(f"{stem.name}.{torn}")
    content = path.read_bytes()
    path.write_bytes(content[: int(left if left >= 1 or not left else left * len(content))])
    assert not is_scored(stem) and read_score(stem) is None
