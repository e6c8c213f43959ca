"""After an update: how the exam's new, kept and superseded questions were answered, and a row per round of a chain of updates.

A superseded question is one whose document changed and whose answer did; its old answer, still given, is what an update must unlearn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.corpus.changes import EARLIER, Changes, changes_since, read_earlier
from data.records import Corpus
from evaluation.report.render import _markdown_table
from evaluation.score_files import Score
from evaluation.scoring.scores import Numbers, exact_match
from evaluation.scoring.statistics import cluster_bootstrap, document_clusters

CHANGE_SETS = ("new", "kept", "superseded")


def with_changes(corpus: Corpus, folder: Path, base_run: str | None) -> tuple[Corpus, Changes | None]:
    """The corpus as the run trained it: what its parent held already is replay. `folder`: of the run."""
    if base_run is None:
        return corpus, None
    changes, moved = changes_since(corpus, read_earlier(folder / EARLIER))
    return moved, changes


def changes_report(
    since: str, changes: Changes, scores: Mapping[str, Score], resamples: int, seed: int, numbers: Numbers = "squad"
) -> dict[str, Any]:
    """{"since", "documents", "removed", "exam_questions", "arms": {arm: {set: {"n", "em", "old_em"}}}}; old_em of superseded questions only."""
    return {
        "since": since,
        **changes.as_dict(),
        "arms": {name: _arm(score, changes, resamples, seed, numbers) for name, score in scores.items()},
    }


def _arm(score: Score, changes: Changes, resamples: int, seed: int, numbers: Numbers) -> dict[str, Any]:
    asked = [row for row in score.rows if row["set"] == "test" and (row.get("mode") or "closed") == "closed"]
    sets: dict[str, Any] = {}
    for name in CHANGE_SETS:
        if rows := [row for row in asked if changes.status.get(row["question_id"]) == name]:
            sets[name] = {"n": len(rows), "em": _share(rows, [row["em"] for row in rows], resamples, seed)}
    if rows := [row for row in asked if row["question_id"] in changes.old_answers]:
        old = [exact_match(row["answer"], changes.old_answers[row["question_id"]], numbers) for row in rows]
        sets["superseded"]["old_em"] = _share(rows, old, resamples, seed)
    return sets


def _share(rows: list[dict[str, Any]], values: Sequence[float], resamples: int, seed: int) -> dict[str, float]:
    interval = cluster_bootstrap(values, document_clusters([row["doc_id"] for row in rows]), resamples, seed)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def changes_markdown(report: dict[str, Any]) -> str:
    """Empty for a run that starts from no other."""
    changes = report.get("changes")
    if not changes:
        return ""
    counts, asked = changes["documents"], changes["exam_questions"]
    lines = [
        "## What changed",
        f"Since `{changes['since']}`: {counts['new']} new, {counts['changed']} changed, {counts['kept']} kept and {counts['removed']} removed "
        f"documents. Of the exam's questions {asked['new']} are new, {asked['kept']} kept, and {asked['superseded']} superseded: document and "
        "answer changed. `base` is the model before the update.",
        "",
        *_markdown_table(
            ["arm", "new EM %", "kept EM %", "superseded: new answer %", "superseded: old answer %"], _arm_rows(changes["arms"])
        ),
    ]
    if changes["removed"]:
        shown = ", ".join(f"`{i}`" for i in changes["removed"][:20])
        lines += ["", f"Removed: {shown}{', …' if len(changes['removed']) > 20 else ''}."]
    return "\n".join([*lines, ""])


def rounds_report(reports: Sequence[dict[str, Any]], first_arm: str) -> list[dict[str, Any]]:
    """A row per round: the experiment's own arm that the updates start from, then each update's."""
    rows = []
    for number, report in enumerate(reports):
        arm = first_arm if number == 0 else next(name for name in report["arms"] if name != "base")
        described, changes = report["arms"][arm], report.get("changes")
        row = {"round": report["experiment"], "arm": arm, "status": described["status"], "steps": described.get("steps")}
        row["test_em"] = described["sets"]["test"]["em"]["mean"] if described["status"] == "scored" else None
        row["documents"] = changes["documents"] if changes else None
        sets = changes["arms"].get(arm, {}) if changes else {}
        for name in CHANGE_SETS:
            row[f"{name}_em"] = sets[name]["em"]["mean"] if name in sets else None
        row["superseded_old_em"] = sets.get("superseded", {}).get("old_em", {}).get("mean")
        rows.append(row)
    return rows


def rounds_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a round."""
    heads = [
        "round",
        "arm",
        "documents new/changed/kept/removed",
        "steps",
        "test EM %",
        "new EM %",
        "kept EM %",
        "superseded: new %",
        "old %",
    ]
    cells = []
    for row in rows:
        counts = row["documents"]
        told = "/".join(str(counts[key]) for key in ("new", "changed", "kept", "removed")) if counts else ""
        ems = [_percent(row[key]) for key in ("test_em", "new_em", "kept_em", "superseded_em", "superseded_old_em")]
        cells.append([row["round"], row["arm"], told, "" if row["steps"] is None else f"{row['steps']:,}", *ems])
    return "\n".join(
        ["## Rounds", "Each round starts from the weights and the records of the one before.", "", *_markdown_table(heads, cells), ""]
    )


def _arm_rows(arms: Mapping[str, Any]) -> list[list[str]]:
    def cell(sets: dict[str, Any], name: str, key: str = "em") -> str:
        return _percent(sets[name][key]["mean"]) + f" ({sets[name]['n']})" if key in sets.get(name, {}) else ""

    return [[name, *(cell(sets, of) for of in CHANGE_SETS), cell(sets, "superseded", "old_em")] for name, sets in arms.items()]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
