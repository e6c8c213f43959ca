"""A search's report from rows alone: the winner, the response surface, importances, and what a reader is warned of."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiment import load_experiment, read_experiment
from tests.conftest import ROOT
from tune.deciding.ledger import Row, Rung
from tune.deciding.space import crossings, trial_id
from tune.report.page import page
from tune.report.render import findings, markdown, summary
from tune.report.report import build_report, common_share, importances, surface
from tune.report.winner import write_winner

FILE = ROOT / "experiments" / "bios_cpu_search.yaml"
RATE, EPOCHS = "arms.pit.stages.1.rate", "arms.pit.stages.1.epochs"


def rows(stopped: bool = False) -> list[Row]:
    """The grid with a score that grows with epochs and is best at 1e-3; `stopped`: all but two end at the first rung."""
    experiment = load_experiment(FILE)
    assert experiment.search
    made = []
    for n, values in enumerate(crossings(experiment.search.space)):
        mean = values[EPOCHS] / 100 - abs(values[RATE] - 1e-3) * 50
        shares = (0.125,) if stopped and n > 1 else (0.125, 0.5, 1.0)
        rungs = [
            Rung(s, {"mean": s * mean, "low": s * mean - 0.05, "high": s * mean + 0.05, "n": 400}, None, int(1000 * s)) for s in shares
        ]
        state = "done" if shares[-1] == 1 else "stopped"
        signals = {"grad_norm": 1 - mean, "early_loss": 2 - mean}
        made.append(
            Row(
                trial_id(values),
                values,
                state,
                started=n,
                rungs=rungs,
                stages=["p", f"s{n}"],
                steps=10,
                tokens=1000,
                train_seconds=5,
                signals=signals,
            )
        )  # type: ignore[arg-type]
    return made


def report_of(trials: list[Row], **more: Any) -> dict[str, Any]:
    experiment = load_experiment(FILE)
    base = {"score": {"mean": 0.03}, "guard": None}
    return build_report(experiment, "pit", trials, {"validation": 400, "test": 400}, base, {}, more.get("ended"))


def test_the_winner_and_what_is_near_it() -> None:
    report = report_of(rows())
    assert report["winner"]["values"] == {RATE: 1e-3, EPOCHS: 90} and report["totals"]["states"] == {"done": 16}
    assert [r["values"] for r in report["trials"] if r["id"] in report["tied"]] == [{RATE: 5e-4, EPOCHS: 90}, {RATE: 2e-3, EPOCHS: 90}]
    assert "rate 0.001, epochs 90" in summary(report) and "2 other trials scored within its interval" in summary(report)
    assert findings(report) == ["The winner has the largest epochs that was tried: better ones may lie beyond."]


def test_the_surface_is_rate_by_epochs() -> None:
    found = report_of(rows())["surface"]
    assert (found["x"], found["by"], found["share"], found["over"]) == (EPOCHS, RATE, 1.0, [])
    assert list(found["lines"]) == ["0.0005", "0.001", "0.002", "0.004"]
    assert [point[:2] for point in found["lines"]["0.001"]] == [[e, pytest.approx(e / 100)] for e in (15, 30, 60, 90)]


def test_after_early_stopping_trials_are_compared_where_all_have_been() -> None:
    trials = rows(stopped=True)
    assert common_share(trials) == 0.125
    report = report_of(trials)
    assert report["surface"]["share"] == 0.125 and "after 12.5 % of each trial's own schedule" in markdown(report)
    assert report["signals"] == {"grad_norm": None, "early_loss": None}, "of two trials that ended nothing can be said"


def test_a_range_of_rates_is_drawn_in_four_parts() -> None:
    experiment = load_experiment(
        FILE,
        [
            f"search.space={{{EPOCHS}: {{choice: [15, 30]}}, {RATE}: {{loguniform: [1.0e-4, 1.0e-2]}}}}",
            "search.algorithm=random",
            "search.trials=20",
        ],
    )
    assert experiment.search
    trials = [
        Row(
            str(n),
            {EPOCHS: 15 + 15 * (n % 2), RATE: 1e-4 * 1.25**n},
            "done",
            rungs=[Rung(1.0, {"mean": n / 20, "low": 0, "high": 1, "n": 9}, None, 1)],
        )
        for n in range(20)
    ]
    found = surface(experiment.search, trials)
    assert found and len(found["lines"]) == 4 and all(len(points) == 2 for points in found["lines"].values())


def test_what_mattered_and_the_signals() -> None:
    report = report_of(rows())
    assert set(report["importances"]) == {RATE, EPOCHS} and report["importances"][EPOCHS] > report["importances"][RATE]
    assert report["signals"]["grad_norm"]["agreement"] == pytest.approx(1) and report["signals"]["early_loss"]["winner_stopped"] > 0.3


def test_rows_of_a_space_that_has_changed_are_left_out() -> None:
    """A grid may be given other values between two starts; its old trials stay in the table."""
    experiment = load_experiment(
        FILE, [f"search.space={{{EPOCHS}: {{grid: [15, 30, 60, 90]}}, {RATE}: {{grid: [5.0e-4, 1.0e-3, 2.0e-3]}}}}"]
    )
    assert experiment.search
    kept = [row for row in rows() if row.values[RATE] in (5e-4, 1e-3, 2e-3)]
    assert len(kept) < len(rows())
    assert importances(experiment.search, rows()) == importances(experiment.search, kept) != {}


def test_page_and_markdown_show_every_trial_and_a_picture() -> None:
    trials = rows()
    trials[3].state, trials[3].reason = "failed", "the loss explodes: <b>9</b> | lower the rate"
    report = report_of(trials, ended="2.00 hours of training and exams; the cap is 2 (search.hours)")
    html, text = page(report), markdown(report)
    assert html.count("<svg") == 3 and "Response surface" in html and "<b>9</b>" not in html and "&lt;b&gt;9" in html
    for trial in trials:
        assert trial.id in html and trial.id in text
    assert "The search ended before it was through: 2.00 hours" in text and "\\| lower the rate" in text


def test_no_trial_at_all_is_a_report_too() -> None:
    report = report_of([])
    assert report["winner"] is None and "there is no winner" in summary(report) and page(report) and markdown(report)


def test_the_winners_file_is_an_experiment(tmp_path: Path) -> None:
    experiment, values = read_experiment(FILE, ["exam.compare_to=pit"])
    assert experiment.search
    best = rows()[7]
    path = write_winner(tmp_path, values, "pit", experiment.search, best)
    winner = load_experiment(path)
    assert winner.search is None and winner.name == experiment.name and winner.exam.validation_share == 0.5
    assert winner.exam.validation_from(7) == experiment.seed != load_experiment(FILE).exam.validation_from(7), (
        "another seed asks none of those that chose"
    )
    assert (winner.stages("pit")[-1].rate, winner.stages("pit")[-1].epochs) == (best.values[RATE], best.values[EPOCHS])
    assert winner.stages("base") == experiment.stages("base") and winner.trainer == experiment.trainer
    assert path.read_text().startswith(f"# Trial {best.id} of the search bios-cpu-search") and yaml.safe_load(path.read_text())["arms"]
