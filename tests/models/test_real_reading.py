"""What a real model makes the exam worth (make real-model): it knows common facts, it reads, and it writes questions. Slow: a few minutes on two idle cores."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.records import ChoiceQuestion, Corpus, Part
from evaluation import harness
from evaluation.config import ExamConfig
from evaluation.score_files import TrainedArm
from tests.conftest import ROOT

MODEL = ROOT / ".real-model"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="make real-model has not been run"),
    pytest.mark.timeout(1800),
]
Run = Callable[..., subprocess.CompletedProcess[str]]
FACTS = {
    "What is the capital of France?": ("Paris", "Rome", "Berlin", "Madrid"),
    "What is the capital of Japan?": ("Tokyo", "Beijing", "Seoul", "Bangkok"),
    "What is the capital of Italy?": ("Rome", "Paris", "Athens", "Vienna"),
    "Which planet is known as the Red Planet?": ("Mars", "Venus", "Saturn", "Jupiter"),
    "What do bees make?": ("honey", "milk", "silk", "paper"),
    "Which animal barks?": ("a dog", "a cat", "a fish", "a cow"),
    "What is the opposite of hot?": ("cold", "warm", "wet", "red"),
    "How many legs does a spider have?": ("eight", "six", "four", "two"),
    "What do plants need to grow?": ("sunlight", "gasoline", "plastic", "sand"),
    "Who wrote Romeo and Juliet?": ("William Shakespeare", "Charles Dickens", "Mark Twain", "Jane Austen"),
    "What is frozen water called?": ("ice", "steam", "sand", "oil"),
    "Which language is spoken in Brazil?": ("Portuguese", "German", "Russian", "Chinese"),
    "What colour is the sky on a clear day?": ("blue", "green", "black", "purple"),
    "On which continent is Egypt?": ("Africa", "Asia", "Europe", "Antarctica"),
    "What is the largest ocean?": ("the Pacific Ocean", "the Atlantic Ocean", "the Indian Ocean", "the Arctic Ocean"),
    "Which season is the coldest?": ("winter", "summer", "spring", "autumn"),
}
"""The right option first; it stands at A, B, C and D in turn."""


def common_knowledge() -> Corpus:
    def at(options: tuple[str, ...], place: int) -> tuple[str, ...]:
        others = list(options[1:])
        others.insert(place, options[0])
        return tuple(others)

    asked = [ChoiceQuestion(f"c{n}", question, at(options, n % 4), n % 4) for n, (question, options) in enumerate(FACTS.items())]
    return Corpus({"test": Part(choices=asked)})


def test_facts_that_it_knows_beat_chance_and_its_letters_are_shown(tmp_path: Path) -> None:
    """By the options' texts it knows more than a quarter (9 of 16 when this was written; 8 or more by chance: 2.7 %). By letters alone a model this small
    knows nothing and says A to everything: the report says so by itself."""
    config = ExamConfig(resamples=500)
    measures = harness.plan_measures(common_knowledge(), config, tmp_path, 0)
    arm = TrainedArm("base", str(MODEL), "w", None, False, {"hf": str(MODEL)})
    result, failure = harness.run_job(harness.job_of(arm, measures.tasks, config, 0, 0), timeout_s=1500)
    assert failure is None
    found = {}
    for form in ("printed", "shuffled", "text"):
        asked = measures.asked[f"choices_closed_{form}"]
        likelihoods = result["tasks"][f"choices_closed_{form}"]["likelihoods"]
        found[form] = harness.judge(asked, harness.predictions(asked, likelihoods, form), form, set(), 500, 0)  # type: ignore[arg-type]
    assert found["text"]["right"] >= 8
    for form in ("printed", "shuffled"):
        assert sum(found[form]["letters"].values()) == pytest.approx(1) and set(found[form]["letters"]) == set("ABCD")
    block = {"questions": 16, "leakage": {"count": 0, "share": 0.0}, "arms": {"base": {"closed": found}}}
    told = " ".join(harness.findings(block, config.choices))
    assert found["text"]["right"] > found["printed"]["right"] and "`base`, printed: its predictions collapse to one letter" in told


def films(data: Path, count: int) -> list[dict[str, Any]]:
    return [
        row for row in map(json.loads, (data / "test_doc.jsonl").read_text(encoding="utf-8").splitlines()) if 200 < len(row["text"]) < 420
    ][:count]


def test_with_the_document_more_than_with_what_is_found_more_than_alone(shared_data: Path, tmp_path: Path, run_command: Run) -> None:
    """Films of 2023 are newer than the model. Retrieval may find another film: it lies between, or is as good as the document."""
    data = shared_data / "wiki2023_film"
    overrides = [
        f"data.root={data}", f"runs={tmp_path}", "name=reading", "data.sample={train: 24, test: 4}", "arms={as_it_is: {preset: cpt}}", "exam.compare_to=as_it_is",
    ]  # fmt: skip
    done = run_command(
        "evaluation", "reading", "experiments/wiki2023_smollm2.yaml", *overrides, "--questions", "16", "--json", timeout_s=1700
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    f1 = {one["mode"]: max(o["f1"] for o in found["tried"] if o["mode"] == one["mode"]) for one in found["tried"]}
    assert f1["closed"] + 0.15 < f1["open"] and f1["closed"] < f1["retrieval"] <= f1["open"] + 0.1
    assert found["bound"]["open"] > found["bound"]["closed"]


def test_how_many_of_its_own_questions_survive_each_rule(shared_data: Path, tmp_path: Path, run_command: Run) -> None:
    """A model of 135M as the writer of a build: guided decoding makes every reply readable, the rules leave out most of it, and every question is accounted for."""
    (tmp_path / "films").mkdir()
    for film in films(shared_data / "wiki2023_film", 6):
        (tmp_path / "films" / f"{film['wiki_id']}.txt").write_text(film["text"], encoding="utf-8")
    options = [
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(MODEL),
        "--no-ray",
        "--characters",
        "600",
        "--questions",
        "3",
        "--wordings",
        "1",
    ]
    done = run_command("data", "build", str(tmp_path / "films"), *options, "--validation-share", "0", "--json", timeout_s=1700)
    assert done.returncode in (0, 2), done.stderr[-2000:]  # 2: no question was left for a split, said in a line
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())["account"]
    print(json.dumps(account["questions"]))
    for what in account.values():
        assert what["came"] == what["used"] + sum(what["left_out"].values())
    assert account["answers"]["used"] >= 4 and account["questions"]["came"] >= 6
