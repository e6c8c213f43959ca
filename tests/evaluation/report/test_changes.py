"""The report of an update: new, kept and superseded questions, old answers that are still given, and a row per round."""

from typing import Any

from data.corpus.changes import Changes
from evaluation.report.changes import changes_markdown, changes_report, rounds_markdown, rounds_report
from evaluation.score_files import Score

CHANGES = Changes(
    new=("d3",),
    changed=("d1",),
    kept=("d2",),
    removed=("gone",),
    num_new_questions=0,
    status={"q1": "superseded", "q2": "superseded", "q3": "kept", "q4": "new"},
    old_answers={"q1": ("Bern",), "q2": ("Oslo", "Christiania")},
)


def score(*answers: tuple[str, str, float]) -> Score:
    rows = [{"set": "test", "question_id": q, "doc_id": f"d-{q}", "answer": said, "em": em} for q, said, em in answers]
    rows.append({"set": "train", "question_id": "q1", "doc_id": "x", "answer": "Bern", "em": 1.0})  # another set's row of the same id
    return Score(rows, {})


def report() -> dict[str, Any]:
    scores = {
        "base": score(("q1", "Bern", 0.0), ("q2", "christiania.", 0.0), ("q3", "yes", 1.0), ("q4", "no", 0.0)),
        "june": score(("q1", "Graz", 1.0), ("q2", "Oslo", 0.0), ("q3", "yes", 1.0), ("q4", "right", 1.0)),
    }
    return changes_report("runs/may:pit", CHANGES, scores, resamples=200, seed=0)


def test_shares_of_new_answers_and_of_old_ones_still_given() -> None:
    arms = report()["arms"]
    means = {arm: {name: (of["n"], of["em"]["mean"]) for name, of in sets.items()} for arm, sets in arms.items()}
    assert means["base"] == {"new": (1, 0.0), "kept": (1, 1.0), "superseded": (2, 0.0)}
    assert means["june"] == {"new": (1, 1.0), "kept": (1, 1.0), "superseded": (2, 0.5)}
    # Compared as exact match compares: case and punctuation do not count, and any of the old answers does.
    assert arms["base"]["superseded"]["old_em"]["mean"] == 1.0 and arms["june"]["superseded"]["old_em"]["mean"] == 0.5
    assert "old_em" not in arms["june"]["kept"]


def test_in_markdown() -> None:
    text = changes_markdown({"changes": report()})
    assert "1 new, 1 changed, 1 kept and 1 removed documents" in text and "Removed: `gone`." in text
    assert "| june | 100.0 (1) | 100.0 (1) | 50.0 (2) | 50.0 (2) |" in text
    assert changes_markdown({}) == ""


def test_a_row_per_round() -> None:
    may = {"experiment": "town", "arms": {"base": {}, "pit": arm(0.7, 100)}}
    june = {"experiment": "town-june", "arms": {"base": arm(0.4, 0), "june": arm(0.6, 50)}, "changes": report()}
    missing = {"experiment": "town-july", "arms": {"july": {"status": "missing", "steps": 3}}}
    rows = rounds_report([may, june, missing], "pit")
    assert [row["round"] for row in rows] == ["town", "town-june", "town-july"]
    assert [row["test_em"] for row in rows] == [0.7, 0.6, None]
    assert rows[1]["superseded_em"] == 0.5 and rows[1]["superseded_old_em"] == 0.5 and rows[0]["superseded_em"] is None
    text = rounds_markdown(rows)
    assert "| town-june | june | 1/1/1/1 | 50 | 60.0 | 100.0 | 100.0 | 50.0 | 50.0 |" in text
    assert "| town-july | july |  | 3 |  |  |  |  |  |" in text


def arm(em: float, steps: int) -> dict[str, Any]:
    return {"status": "scored", "steps": steps, "sets": {"test": {"em": {"mean": em}}}}
