"""What a stage draws besides or instead of all: replay by share and by count, and the best-scored share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from console import UserError
from data.config import Bios, DataConfig, Stage
from data.corpus.bios import make_bios
from data.curriculum.arms import compile_arms
from data.curriculum.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.curriculum.plan import compile_plan, coverage
from data.load import load_corpus
from data.planning.plan_report import in_words
from data.records import Corpus, Document, Part, Question

CATALOGUE = catalogue_of(make_bios(Bios(replay_people=7, train_people=20, test_people=5), seed=0))
REPLAY = CATALOGUE.ranges["replay_documents"]


def stage(**changes: Any) -> Stage:
    values = {"mix": {"test_documents": 2, "train_documents": 1}, "epochs": 6, "batch_items": 8, "rate": 1e-3, **changes}
    return Stage.model_validate({key: value for key, value in values.items() if value is not None})


def replayed(items: np.ndarray) -> np.ndarray:
    return items[(items >= REPLAY.start) & (items < REPLAY.stop)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.6])
def test_replay_is_the_share_of_items_that_was_asked(share: float) -> None:
    plan = compile_plan(stage(replay_share=share), CATALOGUE, 0)
    own = 6 * 30
    assert len(replayed(plan.items)) == round(own * share / (1 - share))  # 0.01 is less than one an epoch and adds up: 2
    assert plan.num_steps == sum(-(-(30 + extra) // 8) for extra in np.diff(np.round(np.arange(7) * 30 * share / (1 - share))))


def test_replay_repeats_only_when_all_were_used_and_is_drawn_anew_by_another_seed() -> None:
    drawn = replayed(compile_plan(stage(replay_share=0.4), CATALOGUE, 0).items)
    for begin in range(0, len(drawn), 7):
        assert len(set(drawn[begin : begin + 7])) == len(drawn[begin : begin + 7])
    assert not np.array_equal(drawn[:7], drawn[7:14])  # each pass in another order
    assert np.array_equal(drawn, replayed(compile_plan(stage(replay_share=0.4), CATALOGUE, 0).items))
    assert not np.array_equal(drawn, replayed(compile_plan(stage(replay_share=0.4), CATALOGUE, 1).items))


def test_the_stages_own_items_stay_as_they_are() -> None:
    plain, with_replay = (compile_plan(stage(replay_share=share, sample_questions=3), CATALOGUE, 0) for share in (0, 0.3))
    kept = with_replay.items[~np.isin(with_replay.items, REPLAY)]
    assert np.array_equal(kept, plain.items) and plain.sha256 != with_replay.sha256


def test_replay_of_token_batches_is_a_share_of_tokens() -> None:
    lengths = np.full(len(CATALOGUE), 10)
    lengths[REPLAY.start : REPLAY.stop] = 40
    plan = compile_plan(stage(replay_share=0.2, batch_items=None, batch_tokens=100), CATALOGUE, 0, lengths)
    tokens = lengths[replayed(plan.items)].sum() / lengths[plan.items].sum()
    assert abs(tokens - 0.2) < 40 / lengths[plan.items].sum()
    counted = len(replayed(compile_plan(stage(replay_share=0.2), CATALOGUE, 0).items))
    assert len(replayed(plan.items)) * 4 == pytest.approx(counted, abs=4)  # the twin: of items four times as many


def test_replay_where_steps_cut_the_last_pass() -> None:
    for steps in range(1, 30):
        plan = compile_plan(stage(replay_share=0.3, epochs=None, steps=steps), CATALOGUE, 0)  # proves its own coverage
        assert plan.num_steps == steps
    times = np.bincount(plan.items, minlength=len(CATALOGUE))[REPLAY.start : REPLAY.stop]
    assert times.max() - times.min() <= 1 and times.max() > 1


def test_replay_is_told_in_words() -> None:
    told = in_words(coverage(compile_plan(stage(replay_share=0.01), CATALOGUE, 0), CATALOGUE))
    assert "2 of 7 replay documents 1×" in told
    assert "each replay document 3 to 4×" in in_words(coverage(compile_plan(stage(replay_share=0.12), CATALOGUE, 0), CATALOGUE))


def test_replay_questions_ride_along_by_count() -> None:
    plan = compile_plan(stage(sample_replay_questions=4, sample_questions=2), CATALOGUE, 0)
    counted = coverage(plan, CATALOGUE)
    assert counted["replay_questions"] == {"items": 4, "of": 35, "least": 6, "most": 6}
    assert counted["train_questions"]["items"] == 2
    assert plan.num_steps == compile_plan(stage(), CATALOGUE, 0).num_steps  # riders are not counted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"replay_share": 0.1}, "replay_share draws replay documents, but the data hold none"),
        ({"sample_replay_questions": 1}, "sample_replay_questions asks for 1 replay questions, but the data hold 0"),
        ({"best_share": {"train_documents": 0.5}}, "best_share of train_documents needs a quality on every one of them; 20 of 20 have none"),
    ],
)  # fmt: skip
def test_data_that_lack_it_are_refused_by_place(changes: dict[str, Any], reason: str) -> None:
    catalogue = catalogue_of(make_bios(Bios(replay_people=0, train_people=20, test_people=5), seed=0))
    with pytest.raises(UserError, match=rf"^arms\.mine\.stages\.0: {reason}"):
        compile_arms({"base": [], "mine": [stage(**changes)]}, catalogue, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"replay_share": 0.1, "mix": {"replay_documents": 1}}, "give one of the two"),
        ({"replay_share": 1.0}, "less than 1"),
        ({"best_share": {"train_questions": 0.1}}, "best_share cuts train_questions, and the stage mixes none"),
        ({"best_share": {"train_documents": 0}}, "greater than 0"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        stage(**changes)


def scored(qualities: list[float | None]) -> Catalogue:
    documents = [Document(f"d{n}", f"Text {n}.", quality=q) for n, q in enumerate(qualities)]
    questions = [Question(f"q{n}", f"What is {n}?", (str(n),), f"d{n}", quality=q) for n, q in enumerate(qualities)]
    return catalogue_of(Corpus({"train": Part(documents, questions)}))


def trained(catalogue: Catalogue, **changes: Any) -> list[str]:
    plan = compile_plan(stage(**{"mix": {"train_documents": 1}, **changes}), catalogue, 0)
    return [catalogue.ids[n] for n in sorted(set(plan.items.tolist()))]


def test_the_best_share_is_trained_and_nothing_else() -> None:
    catalogue = scored([0.3, 9.0, -1.0, 0.3, 5.0, 0.2])
    assert trained(catalogue, best_share={"train_documents": 0.3}) == ["train_documents/d1", "train_documents/d4"]
    assert trained(catalogue, best_share={"train_documents": 0.5}) == [f"train_documents/d{n}" for n in (0, 1, 4)]  # a tie goes by id
    assert len(trained(catalogue, best_share={"train_documents": 0.01})) == 1 and len(trained(catalogue)) == 6


@pytest.mark.parametrize("order", ["shuffled", "sequential", "questions_first", "documents_grouped", "by_level", "spaced"])
def test_every_order_keeps_to_the_best(order: str) -> None:
    documents = [Document(f"d{n}", f"Text {n}.", quality=n % 5) for n in range(20)]
    questions = [Question(f"q{n}", f"What is {n}?", (str(n),), f"d{n}", level=str(n % 3), quality=n) for n in range(20)]
    catalogue = catalogue_of(Corpus({"train": Part(documents, questions)}))
    wanted = stage(
        mix={"train_documents": 1, "train_questions": 1}, order=order, best_share={"train_documents": 0.2, "train_questions": 0.5}
    )
    counted = coverage(compile_plan(wanted, catalogue, 0), catalogue)
    assert counted == {
        "train_documents": {"items": 4, "of": 20, "least": 6, "most": 6},
        "train_questions": {"items": 10, "of": 20, "least": 6, "most": 6},
    }
    assert "4 of 20 train documents 6×" in in_words(counted)


def test_without_data_as_many_are_planned() -> None:
    catalogue = declared_catalogue({"train_documents": 1720})
    plan = compile_plan(stage(mix={"train_documents": 1}, best_share={"train_documents": 0.2}), catalogue, 0)
    assert coverage(plan, catalogue)["train_documents"]["items"] == 344


def test_quality_is_read_and_changes_no_identity(tmp_path: Path) -> None:
    def corpus(name: str, rows: str, format: str = "jsonl", **columns: str) -> Corpus:
        (tmp_path / name).write_text(rows)
        source = {"path": name, "split": "train", "holds": "documents", "format": format, "columns": columns}
        return load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [source]}), 0)

    plain = corpus("a", '{"id": "a", "text": "One."}\n')
    with_score = corpus("b", '{"id": "a", "text": "One.", "quality": 3}\n')
    [document] = with_score.part("train").documents
    assert document.quality == 3.0 and plain.part("train").documents[0].quality is None
    assert plain.fingerprint() == with_score.fingerprint() and replace(document, text="Two.") != document
    assert corpus("c", "id,text,score\na,One.,2.5\n", "csv", quality="score").part("train").documents[0].quality == 2.5
    odd = corpus("d", '{"id": "a", "text": "One.", "quality": "high"}\n')
    assert odd.intakes[0].notes == {"quality ignored: not a finite number": 1}
    with pytest.raises(UserError, match=r"e:1: quality \(column score\) is not a finite number: high"):
        corpus("e", '{"id": "a", "text": "One.", "score": "high"}\n', quality="score")
