"""What a search decides, without Ray workers or weights: rungs, rows, schedulers, caps, what is kept, how machines are shared."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from console import RunError, UserError
from data.config import Bios, DataConfig
from data.corpus.validation import split_validation, without_validation
from data.load import load_corpus
from evaluation.config import ExamConfig
from trainer.store.stages import write_json
from tune.config import Guard, SearchConfig
from tune.deciding.ledger import Ledger, Row, Rung, ranked
from tune.deciding.objective import REFUSED, breaks_guard, missing_for, objective, score_of
from tune.deciding.proposals import num_left, past_study, remaining, searcher
from tune.deciding.rungs import Point, points
from tune.deciding.signals import measured, stopped_in
from tune.deciding.space import trial_id
from tune.deciding.stopping import Ends, cap_reached, cut, make_scheduler
from tune.keeping import not_needed
from tune.search import lay_out
from tune.training import Training, workplace

SPACE = {"dials.epochs_documents": {"grid": [1, 2, 3, 4]}}


def search(**settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, "algorithm": "grid", **settings})


def row(epochs: int, *scores: float, state: str = "done", shares: tuple[float, ...] = (0.5, 1.0), **more: Any) -> Row:
    rungs = [
        Rung(share, {"mean": score, "low": score, "high": score, "n": 10}, None, 100) for share, score in zip(shares, scores, strict=False)
    ]
    values = {"dials.epochs_documents": epochs}
    return Row(trial_id(values), values, state, started=float(epochs), rungs=rungs, **more)  # type: ignore[arg-type]


# ── rungs are shares of a trial's own schedule ────────────────────────────────────────────────────────────────────────────────────────


def test_twice_the_schedule_has_its_rungs_at_twice_the_steps() -> None:
    assert points([10, 40], [0.25, 0.5], "last_stage") == [Point(0.25, 1, 10), Point(0.5, 1, 20), Point(1.0, 1, 40)]
    assert points([10, 80], [0.25, 0.5], "last_stage") == [Point(0.25, 1, 20), Point(0.5, 1, 40), Point(1.0, 1, 80)]


def test_over_the_whole_curriculum_a_rung_may_end_a_stage() -> None:
    assert points([10, 30], [0.25, 0.5], "curriculum") == [Point(0.25, 0, 10), Point(0.5, 1, 10), Point(1.0, 1, 30)]


def test_a_short_schedule_has_fewer_rungs() -> None:
    assert points([2], [0.125, 0.25, 0.5], "last_stage") == [Point(0.125, 0, 1), Point(1.0, 0, 2)]
    assert points([1], [0.125, 0.5], "last_stage") == [Point(1.0, 0, 1)]


def test_shares_of_the_settings() -> None:
    assert search(stopping={"first_rung": 0.125, "reduction": 2}).stopping.rungs == [0.125, 0.25, 0.5]
    assert search(stopping={"first_rung": 1}).stopping.rungs == []


# ── the questions that choose are not those of the test ───────────────────────────────────────────────────────────────────────────────


def test_validation_and_test_share_no_document_and_all_documents_are_trained() -> None:
    corpus = load_corpus(DataConfig(bios=Bios(replay_people=2, train_people=4, test_people=10)), 0)
    choosing, test = split_validation(corpus, 0.4, 0)
    sides = [{q.doc_id for q in part.part("test").questions} for part in (choosing, test)]
    assert [len(side) for side in sides] == [4, 6] and not sides[0] & sides[1]
    assert len(choosing.part("test").questions) + len(test.part("test").questions) == 50
    assert len(choosing.part("test").documents) == len(test.part("test").documents) == 10
    assert split_validation(corpus, 0.4, 0)[0].part("test").questions == choosing.part("test").questions
    assert {q.doc_id for q in split_validation(corpus, 0.4, 1)[0].part("test").questions} != sides[0]
    assert without_validation(corpus, 0.0, 0) is corpus
    assert len(corpus.part("test").questions) == 50, "the corpus itself stays whole"
    with pytest.raises(UserError, match=r"exam\.validation_share: 0\.01 of 10 documents"):
        split_validation(corpus, 0.01, 0)


# ── metric and guard ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_objective_that_no_exam_produces() -> None:
    corpus = load_corpus(DataConfig(bios=Bios(replay_people=0, train_people=2, test_people=4)), 0)
    config = ExamConfig()
    assert missing_for("em", search(), corpus, config) is None
    assert "no multiple-choice questions" in str(missing_for("choices", search(), corpus, config))
    assert "exam.documents is 0" in str(missing_for("document_loss", search(), corpus, config.model_copy(update={"documents": 0})))
    guarded = search(guard={"set": "replay", "most_points": 5})
    assert "no replay questions" in str(missing_for("em", guarded, corpus, config))
    guarded = search(guard={"set": "retention", "most_points": 5})
    assert "needs exam.retention" in str(missing_for("em", guarded, corpus, config))


def test_scores_of_every_metric() -> None:
    rows = [{"em": float(n < 3), "doc_id": str(n // 2)} for n in range(4)]
    assert score_of("em", rows, [], [], 200, 0)["mean"] == 0.75
    assert score_of("choices", [], [], [("a", 1.0), ("b", 0.0)], 200, 0)["mean"] == 0.5
    losses = [{"id": "a", "tokens": 10, "nll": 10.0}, {"id": "b", "tokens": 30, "nll": 90.0}]
    assert score_of("document_loss", [], losses, [], 200, 0)["mean"] == pytest.approx(100 / 40)
    with pytest.raises(RunError, match="diverged"):
        score_of("document_loss", [], [{"id": "a", "tokens": 10, "nll": None}], [], 200, 0)


def test_the_guard_refuses_what_forgets() -> None:
    guarded = search(guard=Guard(set="replay", most_points=5))
    assert breaks_guard(guarded, 0.95, 1.0) is None
    assert "fell by 6.0 points" in str(breaks_guard(guarded, 0.94, 1.0))
    assert breaks_guard(search(), 0.0, 1.0) is None
    assert objective(guarded, 0.9, refused=True) == 0.9 - REFUSED
    assert objective(search(metric="document_loss"), 2.0, refused=True) == 2.0 + REFUSED


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_survive_and_another_search_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.begin({"dials.epochs_documents": 1})
    first.rungs.append(Rung(0.5, {"mean": 0.1}, None, 7))
    ledger.write(first)
    assert Ledger(tmp_path).begin({"dials.epochs_documents": 1}) == first, "a trial that was under way keeps its rungs"
    assert [r.id for r in ledger.rows()] == [first.id]
    first.state = "failed"
    ledger.write(first)
    assert ledger.forget("failed") == 1 and ledger.rows() == []
    ledger.check_identity({"metric": "em", "arm": 1})
    ledger.check_identity({"metric": "em", "arm": 1})
    with pytest.raises(UserError, match="holds a search that differs in metric"):
        ledger.check_identity({"metric": "recall", "arm": 1})


def test_the_best_ended_and_was_not_refused_and_of_equals_trained_less() -> None:
    cheap, dear = row(1, 0.1, 0.5), row(2, 0.2, 0.5)
    dear.rungs[-1].tokens = 900
    rows = [dear, row(3, 0.9, 0.9, state="refused"), row(4, 0.8, state="stopped"), cheap]
    assert [r.id for r in ranked(rows, "max")] == [cheap.id, dear.id]


def test_what_is_left_of_a_list_begins_with_what_was_under_way() -> None:
    config = search()
    rows = [row(2, 0.1, 0.5), row(3, state="paused"), row(4, 0.1, state="stopped")]
    left = remaining(config, 0, rows)
    assert left is not None and [v["dials.epochs_documents"] for v in left] == [3, 1] and num_left(config, 0, rows) == 2
    waiting = [row(n, 0.1, state="paused") for n in (1, 2, 3)]
    assert [v["dials.epochs_documents"] for v in remaining(config, 0, waiting, 0.5) or []] == [4], (
        "who waits at the rung is not asked again"
    )


def test_optuna_learns_of_the_past_and_asks_again_for_what_was_under_way() -> None:
    config = SearchConfig.model_validate({"space": {"a": {"choice": [1, 2]}, "b": {"uniform": [0, 1]}}, "trials": 9})

    def tried(a: int, b: float, state: str, *scores: float) -> Row:
        return Row(f"{a}{b}", {"a": a, "b": b}, state, rungs=[Rung(1.0, {"mean": s}, None, 1) for s in scores])  # type: ignore[arg-type]

    study = past_study(
        config, [tried(1, 0.5, "done", 0.7), tried(2, 0.1, "failed"), tried(2, 0.2, "paused"), tried(1, 0.3, "refused", 0.9)]
    )
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "WAITING", "COMPLETE"]
    assert study.best_value == 0.7, "a refused trial is never the best"
    asked = study.ask()
    assert (asked.suggest_categorical("a", ["1", "2"]), asked.suggest_float("b", 0, 1)) == ("2", 0.2)
    proposing = pickle.loads(pickle.dumps(searcher(config, 0, [tried(2, 0.2, "paused")])))  # as Ray Tune does
    assert proposing.suggest("t")["values"] == {"a": 2, "b": 0.2}


# ── schedulers, signals, caps ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_asha_compares_at_shares_and_remembers_after_a_restart() -> None:
    config = search(stopping={"first_rung": 0.5, "reduction": 2})

    def decision(scheduler: TrialScheduler, score: float) -> str:
        trial: Any = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        return str(scheduler.on_trial_result(None, trial, {"progress": 50.0, "objective": score}))

    past = [row(1, 0.8), row(2, 0.6), row(3, 0.7)]
    assert decision(make_scheduler(config, past), 0.5) == TrialScheduler.STOP
    assert decision(make_scheduler(config, past), 0.75) == TrialScheduler.CONTINUE
    assert decision(make_scheduler(config, []), 0.5) == TrialScheduler.CONTINUE, "the twin: nothing to compare with"
    assert isinstance(make_scheduler(search(stopping={"scheduler": "none"}), past), FIFOScheduler)


def test_a_rung_is_reached_whatever_its_last_bit() -> None:
    """0.15 · 3 is 0.44999999999999996: the schedule's own second rung, where trials are compared."""
    config = search(stopping={"first_rung": 0.15, "reduction": 3})
    share = config.stopping.rungs[1]
    scheduler = make_scheduler(config, [row(1, 0.8, 0.8, shares=(0.15, share)), row(2, 0.7, 0.7, shares=(0.15, share))])
    trial: Any = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"progress": 100 * share, "objective": 0.1}) == TrialScheduler.STOP


def test_who_breaks_the_guard_at_a_rung_is_behind_the_others() -> None:
    """Two score more and have forgotten 20 points, where 3 are allowed: they would be refused at their end, and the others stopped for them."""
    config = search(stopping={"scheduler": "halving", "first_rung": 0.5, "reduction": 2}, guard={"set": "replay", "most_points": 3})
    rows = [row(n, score, state="paused") for n, score in ((1, 0.6), (2, 0.6), (3, 0.5), (4, 0.4))]
    for one, guard in zip(rows, (0.7, 0.7, 0.9, 0.9), strict=True):
        one.rungs[0].guard = guard
    assert sorted(r.values["dials.epochs_documents"] for r, _ in cut(config, rows, 0.5, 0.9)) == [1, 2]
    assert sorted(r.values["dials.epochs_documents"] for r, _ in cut(config, rows, 0.5)) == [3, 4]  # the twin: no base to compare with
    asha = search(stopping={"first_rung": 0.5, "reduction": 2}, guard={"set": "replay", "most_points": 3})
    trial: Any = SimpleNamespace(trial_id="new")
    for base, told in ((0.9, TrialScheduler.CONTINUE), (None, TrialScheduler.STOP)):
        scheduler = make_scheduler(asha, rows[:2], base)
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"progress": 50.0, "objective": 0.5}) == told


def test_halving_cuts_once_and_the_same_again() -> None:
    config = search(stopping={"scheduler": "halving", "first_rung": 0.5, "reduction": 2})
    rows = [row(n, score, state="paused") for n, score in ((1, 0.1), (2, 0.4), (3, 0.3), (4, 0.2))]
    out = cut(config, rows, 0.5)
    assert [r.values["dials.epochs_documents"] for r, _ in out] == [4, 1] and out[0][1].startswith("not among the best 2 of 4 at 50 %")
    out[0][0].state = "stopped"  # killed between the two
    assert [r.values["dials.epochs_documents"] for r, _ in cut(config, rows, 0.5)] == [1]
    assert len(cut(config, [row(1, state="failed"), *rows[1:3]], 0.5)) == 1, "a trial that raised is not counted"


def test_a_signal_stops_the_bad_quarter_and_is_measured() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 0.5]
    assert stopped_in("grad_norm", values) == [False, False, False, False, True, False]
    assert stopped_in("early_loss", values) == [False, False, False, False, False, True]
    told = measured("grad_norm", [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], 1, 200, 0)
    assert told is not None and told["agreement"] == pytest.approx(1) and told["winner_stopped"] == 0 and told["stopped"] > 0
    wrong = measured("early_loss", [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], 1, 200, 0)
    assert wrong is not None and wrong["agreement"] == pytest.approx(-1) and wrong["winner_stopped"] > 0.2
    assert measured("grad_norm", [1, 2], [1, 2], 1, 10, 0) is None


def test_caps_and_signals_in_the_stopper() -> None:
    spent = [row(n, 0.1, 0.2, train_seconds=1800.0, gpu_hours=2.0, signals={"grad_norm": 1.0, "early_loss": 2.0}) for n in (1, 2, 3, 4)]
    assert cap_reached(search(), spent) is None
    assert "2.00 hours" in str(cap_reached(search(hours=2), spent)) and cap_reached(search(hours=2.1), spent) is None
    assert "8.00 GPU-hours" in str(cap_reached(search(gpu_hours=8), spent))
    assert "cost of 16.00" in str(cap_reached(search(cost=15, price_per_gpu_hour=2), spent))
    ends = Ends(search(stopping={"signals": ["grad_norm"]}), lambda: spent, lambda: None)
    assert not ends("t", {"trial": "calm", "progress": 50, "grad_norm": 0.9, "early_loss": 9.0})
    assert ends("t", {"trial": "wild", "progress": 50, "grad_norm": 9.0, "early_loss": 9.0}) and "grad_norm" in ends.reasons["wild"]
    unused = Ends(search(), lambda: spent, lambda: "enough")
    assert not unused("t", {"trial": "wild", "progress": 50, "grad_norm": 9.0, "early_loss": 9.0})
    assert unused.stop_all() and unused.ended == "enough"


# ── weights and machines ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_best_and_what_several_share_keep_their_weights() -> None:
    rows = [
        row(1, 0.1, 0.5, stages=["shared", "mine1", "a"]),
        row(2, 0.1, 0.9, stages=["shared", "mine2", "b"]),
        row(3, 0.1, state="stopped", stages=["shared", "mine3", "c"]),
        row(4, state="paused", stages=["shared", "mine4", "d"]),
    ]
    assert not_needed(search(), rows, at_end=False) == ["a", "c"]
    assert not_needed(search(), rows, at_end=True) == ["mine1", "a", "mine3", "c"]
    assert not_needed(search(keep_best=2), rows, at_end=False) == ["c"]
    assert not_needed(search(), rows, at_end=True, held={"mine1", "a"}) == ["mine3", "c"], "arms of python -m trainer keep theirs"


@pytest.mark.parametrize(
    ("settings", "workers", "exam", "machine", "expected"),
    [
        ({}, 1, None, (0, 2), (0, 0, None, 2, False)),
        ({"max_concurrent": 1}, None, None, (0, 2), (0, 0, None, 1, False)),
        ({}, 2, None, (0, 2), (0, 0, (2, 2), 1, False)),
        ({}, None, None, (8, 64), (1, 1, None, 7, False)),
        ({}, 4, None, (9, 64), (4, 1, (4, 4), 2, False)),
        ({"gpus_per_trial": 8}, None, None, (8, 64), (8, 1, (8, 8), 1, True)),
        ({}, None, None, (1, 8), (1, 1, (1, 1), 1, True)),
    ],
)
def test_how_trials_and_exam_share_the_machines(settings: dict, workers: Any, exam: Any, machine: tuple, expected: tuple) -> None:  # type: ignore[type-arg]
    layout = lay_out(search(**settings), workers, exam, *machine)
    assert (layout.gpus, layout.exam_gpus, layout.workers, layout.concurrent, layout.turns) == expected


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="gpus_per_trial: 8 is more than the 4 GPUs there are"):
        lay_out(search(gpus_per_trial=8), None, None, 4, 16)
    with pytest.raises(UserError, match="gpus_per_trial: 1 is more than the 0 GPUs there are"):
        lay_out(search(gpus_per_trial=1), None, None, 0, 16)
    with pytest.raises(UserError, match=r"exam\.gpus: 2 is more than the 1 GPUs"):
        lay_out(search(), None, 2, 1, 16)


def test_rows_are_plain_json(tmp_path: Path) -> None:
    Ledger(tmp_path).write(row(1, 0.1, 0.5))
    assert json.loads(next((tmp_path / "search/trials").glob("*.json")).read_text())["rungs"][1]["share"] == 1.0


def test_a_moved_run_folder_has_its_own_stages_again(tmp_path: Path) -> None:
    (workplace(tmp_path / "before", "trial") / "stages" / "key").mkdir()
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "before").mkdir()
    assert (workplace(tmp_path / "after", "trial") / "stages" / "key").is_dir()


def test_what_a_trial_asked_beside_a_stage_goes_with_it(tmp_path: Path) -> None:
    """A teacher's store of a stage that is trained, of this trial alone; what another place holds, or an open stage needs, stays."""
    place, elsewhere = workplace(tmp_path, "one"), tmp_path / "teachers" / "other"
    stores = {name: place / name / "key" for name in ("teachers", "importance")}
    for folder in (*stores.values(), elsewhere):
        folder.mkdir(parents=True)
    training = Training(tmp_path, place, None, None, None)  # type: ignore[arg-type]

    def job(key: str, lessons: Path) -> Any:
        return SimpleNamespace(
            key=key,
            lessons=SimpleNamespace(folder=str(lessons.resolve())),
            important=SimpleNamespace(folder=str(stores["importance"].resolve())),
        )

    training._forget(job("open", stores["teachers"]))
    assert all(folder.is_dir() for folder in stores.values())
    write_json(tmp_path / "stages" / "done" / "manifest.json", {})
    training._forget(job("done", elsewhere))
    assert elsewhere.is_dir() and stores["teachers"].is_dir() and not stores["importance"].exists()
    training._forget(job("done", stores["teachers"]))
    assert not stores["teachers"].exists()
