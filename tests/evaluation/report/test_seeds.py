"""Several run folders taken together: from made scores on disk, values by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from console import UserError
from evaluation import __main__ as command
from evaluation.report.seeds import across_seeds
from evaluation.score_files import score_stem, trained_arms, write_score


def write_run(
    folder: Path, seed: int, right: dict[str, set[int]], exam: str = "exam", questions: int = 4, people: int | None = None, **settings: Any
) -> Path:
    """A scored run: of each arm the test questions that it got right; two questions a document, with answers of the seed's own people (or of those of seed `people`)."""
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    arms = {name: {"hf": f"someone/{name}", "stage": None, "steps": 3} for name in right}
    (folder / "arms.json").write_text(json.dumps({"experiment": folder.name, "records_sha256": str(seed), "arms": arms}))
    for arm in trained_arms(folder)[0]:
        rows: list[dict[str, Any]] = [
            {
                "set": name,
                "mode": mode,
                "question_id": f"{name}-{i}",
                "doc_id": f"d{i // 2}",
                "gold": [f"{i} of {seed if people is None else people}"],
                "em": float((i in right[arm.name]) == (mode == "closed")),
                "recall": 1.0,
                "f1": 0.0,
                "rouge_l": 0.0,
            }
            for name, mode in (("test", "closed"), ("test", "retrieval"), ("train", "closed"))
            for i in range(questions)
        ]
        write_score(score_stem(folder, arm, exam), arm.name, seed, rows, {"weights": arm.weights, "exam": settings})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """pit − standard is +½ in seed 0 and +1 in seed 3, alike for every document; only seed 3 has the arm mix."""
    return [
        write_run(tmp_path / "x-0", 0, {"standard": {0, 2}, "pit": {0, 1, 2, 3}}),
        write_run(tmp_path / "x-3", 3, {"standard": set(), "pit": {0, 1, 2, 3}, "mix": {0}}),
    ]


def test_values_by_hand(runs: list[Path]) -> None:
    found = across_seeds(runs, [("pit", "standard")])
    assert found["seeds"] == [0, 3]
    standard = found["arms"]["standard"]
    assert (standard["mean"], standard["low"], standard["high"], standard["by_seed"]) == (0.25, 0, 0.5, [0.5, 0])
    assert (standard["questions"], standard["documents"]) == (8, 4)
    assert standard["sd"] == pytest.approx(0.3536, abs=1e-4)
    gap = found["differences"]["pit"]["standard"]
    assert (gap["mean"], gap["low"], gap["high"], gap["by_seed"]) == (0.75, 0.5, 1, [0.5, 1])
    assert list(found["differences"]) == ["pit"]
    helped = across_seeds(runs, [("pit", "standard")], mode="retrieval")  # made right where `closed` is wrong
    assert helped["arms"]["standard"]["mean"] == 0.75
    assert found["missing"] == {"mix": [str(runs[0])]}


def test_seeds_that_were_asked_the_same_share_their_documents(tmp_path: Path) -> None:
    """One document is easy for both seeds, one hard: an interval over documents, which two seeds do not even out."""
    right = {"pit": {0, 1}, "standard": set[int]()}
    same = across_seeds([write_run(tmp_path / f"s-{seed}", seed, right, people=0) for seed in (0, 1, 2, 3)])["arms"]["pit"]
    own = across_seeds([write_run(tmp_path / f"o-{seed}", seed, right) for seed in (0, 1, 2, 3)])["arms"]["pit"]
    assert (same["low"], same["high"], same["documents"]) == (0, 1, 2)
    assert own["low"] > 0 and own["high"] < 1 and own["documents"] == 8  # the twin


def test_scores_of_other_exams_are_not_taken_together(runs: list[Path], tmp_path: Path) -> None:
    """A trial with fewer questions after the exam; another setting in another seed."""
    write_run(runs[0], 0, {"standard": {0}, "pit": {0}}, exam="a trial", questions=1, answer_tokens=8)
    write_run(runs[1], 3, {"standard": {0}, "pit": {0}}, exam="again", answer_tokens=24)
    with pytest.raises(UserError, match=r"x-3: its newest scores and those of .*x-0 differ in exam.answer_tokens \(24 and 8\)"):
        across_seeds(runs)


def test_scores_that_do_not_say_their_settings_go_with_those_that_do(runs: list[Path]) -> None:
    """Of a run that an earlier version examined, one arm was examined again."""
    write_run(runs[0], 0, {"standard": {0, 2}, "pit": {0, 1, 2, 3}}, exam="again", answer_tokens=24)
    for path in (runs[0] / "scores").glob("standard-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "exam": {}}))
    assert across_seeds(runs)["arms"]["standard"]["by_seed"] == [0.5, 0]


def test_every_arm_against_every_other_by_default(runs: list[Path]) -> None:
    found = across_seeds(runs, metric="recall", set_name="train")
    assert {a: list(of) for a, of in found["differences"].items()} == {"standard": ["pit"], "pit": ["standard"]}
    assert found["arms"]["pit"]["mean"] == 1


def test_the_last_score_of_the_present_weights_counts(runs: list[Path]) -> None:
    write_run(runs[0], 0, {"standard": {0, 1, 2, 3}, "pit": {0, 1, 2, 3}}, exam="a later one")
    assert across_seeds(runs)["arms"]["standard"]["by_seed"] == [1, 0]
    arms = json.loads((runs[0] / "arms.json").read_text())
    arms["arms"]["standard"]["hf"] = "someone/trained-again"
    (runs[0] / "arms.json").write_text(json.dumps(arms))
    with pytest.raises(UserError, match=r"arm standard has no score of set test in .*x-0; scored everywhere: pit"):
        across_seeds(runs, [("pit", "standard")])


def test_bad_input(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two of these runs have seed 0"):
        across_seeds([runs[0], write_run(tmp_path / "y-0", 0, {"pit": set()})])
    with pytest.raises(UserError, match="no such run folder"):
        across_seeds([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no arm has a score of set replay"):
        across_seeds(runs, set_name="replay")
    with pytest.raises(UserError, match="arm nobody has no score"):
        across_seeds(runs, [("pit", "nobody")])
    write_run(runs[0], 0, {"standard": {0}}, exam="shorter", questions=2)
    arms = {name: {"hf": f"someone/{name}", "stage": None, "steps": 3} for name in ("standard", "pit")}
    (runs[0] / "arms.json").write_text(json.dumps({"experiment": "x", "records_sha256": "0", "arms": arms}))
    with pytest.raises(UserError, match="the newest scores of pit and standard are of different exams"):
        across_seeds(runs)


def test_the_command(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["seeds", *map(str, runs), "--pair", "pit:standard"]
    assert command.main(words) == 0
    text = capsys.readouterr().out
    assert "pit − standard" in text and "50.0 to 100.0" in text and "mix is left out" in text
    assert command.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == across_seeds(runs, [("pit", "standard")])
