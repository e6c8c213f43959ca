"""Every preset on the papers' own kind of data, its plan checked against the paper's description (PIT, arXiv 2402.12847, Table 1 and 3).

The check reads the plan alone: what is trained in which stage, how often, in which order, in how many steps, with which loss.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, Stage
from data.curriculum.arm_config import Dials
from data.curriculum.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.curriculum.plan import Plan, compile_plan
from data.curriculum.presets import PRESETS, preset_stages
from data.load import load_corpus
from data.records import Document
from data.rows.flat_rows import reading_of, step_rows
from data.rows.token_store import TokenStore, write_store, write_wordings
from data.tokens import Encoder
from data.wording.templates import Wording
from data.wording.tiny_tokenizer import make_tokenizer
from experiment import load_experiment
from tests.conftest import ROOT

DOC, QA, NEW = "train_documents", "train_questions", "test_documents"
NO_ANSWER = ["missing", "not provided", "not available"]
FILM: dict[str, Any] = {
    "overlap": "allow",
    "sources": [
        {"path": "train_doc.jsonl", "split": "train", "holds": "documents", "columns": {"id": "wiki_id"}},
        {"path": "train_qa.jsonl", "split": "train", "holds": "questions", "columns": {"doc_id": "wiki_id"}},
        {"path": "test_doc.jsonl", "split": "test", "holds": "documents", "columns": {"id": "wiki_id"}},
        {"path": "test_qa.jsonl", "split": "test", "holds": "questions", "columns": {"doc_id": "wiki_id"}},
    ],
}
BIO: dict[str, Any] = {
    "overlap": "drop_from_train",
    "cut_lines": ["Ref:"],
    "drop_answers": [
        *(f"Information {end}" for end in NO_ANSWER),
        "Not mentioned in the paragraph",
        "Not specified",
        "The question is incomplete",
    ],
    "sources": [{"path": f"{s}_pages.json", "split": s, "holds": "both", "format": "wiki_pages"} for s in ("train", "test")],
}


@dataclass(frozen=True)
class Described:
    """A stage in the paper's words."""

    epochs: dict[str, int]
    rate: float
    riding: int = 0
    """Of the 64 QA pairs, times an epoch."""
    order: str = "shuffled"
    batch: int = 256
    weighted: bool = False
    everything: bool = False


NEW_DOCUMENTS = Described({NEW: 10}, 3e-5, riding=64)
INSTRUCTION = Described({QA: 1}, 5e-6)
PIT = Described({QA: 3, DOC: 3}, 3e-5, order="questions_first")
BOTH_DOCUMENTS = Described({DOC: 10, NEW: 10}, 3e-5)
EXPECTED = {
    "cpt": [NEW_DOCUMENTS],
    "standard": [BOTH_DOCUMENTS, INSTRUCTION],
    "standard_no_forgetting": [BOTH_DOCUMENTS, Described({QA: 1, NEW: 1}, 3e-5)],
    "mix": [Described({QA: 3, DOC: 3, NEW: 3}, 3e-5)],
    "pit_qa_only": [Described({QA: 3}, 5e-6), NEW_DOCUMENTS],
    "pit_sequential": [Described({QA: 3}, 5e-6), Described({DOC: 10}, 3e-5), NEW_DOCUMENTS],
    "pit": [PIT, NEW_DOCUMENTS],
    "pit_plus_plus": [INSTRUCTION, PIT, NEW_DOCUMENTS],
    "it_without_train_doc": [Described({NEW: 10}, 3e-5), INSTRUCTION],
    "weighted_cpt": [Described({NEW: 10}, 3e-5, riding=64, weighted=True)],
    "adapted_cpt": [Described({DOC: 10}, 3e-5), NEW_DOCUMENTS],
    "pit_minus_minus": [PIT, INSTRUCTION, NEW_DOCUMENTS],
    "interleaved": [Described({QA: 3, DOC: 3}, 2e-4, order="documents_first", batch=8, everything=True)],
}
# The arms of experiments/wiki2023_ablations_7b.yaml: order and epochs of setting 7's mixed stage, and the other settings of that table.
ABLATIONS = {
    "pit": EXPECTED["pit"],
    "documents_first": [replace(PIT, order="documents_first"), NEW_DOCUMENTS],
    "questions_grouped": [replace(PIT, order="questions_grouped"), NEW_DOCUMENTS],
    "documents_grouped": [replace(PIT, order="documents_grouped"), NEW_DOCUMENTS],
    "shuffled": [replace(PIT, order="shuffled"), NEW_DOCUMENTS],
    **{f"epochs_{n}": [replace(PIT, epochs={QA: n, DOC: n}), NEW_DOCUMENTS] for n in (1, 5, 10)},
    **{name: EXPECTED[name] for name in ("weighted_cpt", "adapted_cpt", "it_without_train_doc", "pit_minus_minus")},
}


def check(stages: list[Stage], described: list[Described], catalogue: Catalogue) -> None:
    """AssertionError where the plan is not what the paper says."""
    assert len(stages) == len(described)
    for stage, says in zip(stages, described, strict=True):
        plan = compile_plan(stage, catalogue, 0)
        times = np.bincount(plan.items, minlength=len(catalogue))
        for kind, numbers in catalogue.ranges.items():
            part, wanted = times[numbers.start : numbers.stop], says.epochs.get(kind, 0)
            if kind == QA and says.riding:
                assert sorted(set(part.tolist())) == [0, 10] and (part > 0).sum() == says.riding
            else:
                assert (part == wanted).all(), f"{kind}: each {wanted} times"
        own = sum(len(catalogue.ranges[kind]) for kind in says.epochs)  # type: ignore[index,misc]
        times_over, passes = max(says.epochs.values()), 1
        if not says.order.endswith("grouped"):  # those lay out all epochs at once
            times_over, passes = passes, times_over
        assert plan.num_steps == ceil(own * times_over / says.batch) * passes
        assert stage.rate == says.rate
        if not says.everything:
            assert (stage.schedule, stage.final_rate_share, stage.warmup_steps, stage.loss) == ("cosine", 0.1, 0, "example")
        assert seen_order(plan, says, catalogue) == says.order
        assert stage.other_weight == (0.5 if says.weighted else 1.0)
        assert stage.loss_on == ("everything" if says.everything else "answers")


def seen_order(plan: Plan, says: Described, catalogue: Catalogue) -> str:
    """What order the plan's items stand in, looked at without the code that put them there; riding questions are left out."""
    own = np.isin(np.arange(len(catalogue)), [n for kind in says.epochs for n in catalogue.ranges[kind]])  # type: ignore[index]
    num_epochs = max(says.epochs.values())
    bounds = plan.starts[np.linspace(0, plan.num_steps, num_epochs + 1).astype(int)]
    whole = plan.items[own[plan.items]]
    passes = [part[own[part]] for part in (plan.items[a:b] for a, b in pairwise(bounds))]
    if all((np.diff(items) >= 0).all() for items in passes):
        return "sequential"
    if num_epochs > 1 and (side := side_of_questions(whole, catalogue)) != "mixed":
        return f"{side}_grouped"
    for items in passes:
        assert len(set(items.tolist())) == len(items) == own.sum(), "each pass holds each item once"
    sides = {side_of_questions(items, catalogue) for items in passes}
    if sides in ({"questions"}, {"documents"}):
        return f"{sides.pop()}_first"
    kinds = np.searchsorted([numbers.stop for numbers in catalogue.ranges.values()], whole, side="right")
    shares = np.bincount(kinds) / len(kinds)
    changes = (kinds[1:] != kinds[:-1]).mean()  # of items drawn at random: 1 - Σ share²
    return "shuffled" if abs(changes - (1 - (shares**2).sum())) < 0.05 else "neither"


def side_of_questions(items: np.ndarray, catalogue: Catalogue) -> str:
    """Which stands first where every document's items are one run, its questions all on one side; else "mixed"."""
    is_question = catalogue.document_of[items] >= 0
    document = np.where(is_question, catalogue.document_of[items], items)
    new_run = np.concatenate([[True], document[1:] != document[:-1]])
    run = np.cumsum(new_run) - 1
    if new_run.sum() != len(np.unique(document)) or not is_question.any() or is_question.all():
        return "mixed"
    turns = np.bincount(run[1:], weights=(is_question[1:] != is_question[:-1]) & ~new_run[1:])
    if turns.max() > 1:
        return "mixed"
    both = np.flatnonzero(new_run)[turns == 1]  # documents without questions say nothing
    firsts = set(is_question[both].tolist())
    return {True: "questions", False: "documents"}[firsts.pop()] if len(firsts) == 1 else "mixed"


@pytest.fixture(scope="module")
def made() -> Catalogue:
    """The film data's counts, always there."""
    return declared_catalogue({DOC: 1720, QA: 11603, NEW: 256, "test_questions": 1743})


@pytest.fixture(scope="module")
def film(shared_data: Path) -> Catalogue:
    return catalogue_of(load_corpus(DataConfig.model_validate({**FILM, "root": str(shared_data / "wiki2023_film")}), 0))


@pytest.fixture(scope="module")
def bio(shared_data: Path) -> Catalogue:
    return catalogue_of(load_corpus(DataConfig.model_validate({**BIO, "root": str(shared_data / "wiki_bio")}), 0))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("data", ["made", "film", "bio"])
def test_preset_is_what_the_paper_says(preset: str, data: str, request: pytest.FixtureRequest) -> None:
    check(preset_stages(preset, Dials()), EXPECTED[preset], request.getfixturevalue(data))


@pytest.mark.parametrize("arm", ABLATIONS)
@pytest.mark.parametrize("data", ["made", "film", "bio"])
def test_ablation_is_what_the_paper_says(arm: str, data: str, request: pytest.FixtureRequest) -> None:
    experiment = load_experiment(ROOT / "experiments" / "wiki2023_ablations_7b.yaml")
    assert set(experiment.arms) == set(ABLATIONS)
    check(experiment.stages(arm), ABLATIONS[arm], request.getfixturevalue(data))


@pytest.mark.parametrize(
    "order", ["questions_first", "documents_first", "questions_grouped", "documents_grouped", "shuffled", "sequential"]
)
def test_orders_are_told_apart(order: str, bio: Catalogue) -> None:
    stage = Stage.model_validate({**preset_stages("pit", Dials())[0].model_dump(exclude_none=True), "order": order})
    assert seen_order(compile_plan(stage, bio, 0), PIT, bio) == order


def test_every_preset_is_described() -> None:
    assert set(EXPECTED) == set(PRESETS)


@pytest.mark.parametrize("preset", EXPECTED)
def test_steps_on_the_papers_counts(preset: str, film: Catalogue, made: Catalogue) -> None:
    steps = [compile_plan(s, film, 0).num_steps for s in preset_stages(preset, Dials())]
    assert steps == [compile_plan(s, made, 0).num_steps for s in preset_stages(preset, Dials())]
    if preset == "pit":
        assert steps == [159, 10]  # 53 steps an epoch, 1 an epoch


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "shuffled"},
        {"order": "documents_first"},
        {"order": "questions_grouped"},
        {"order": "documents_grouped"},
        {"order": "sequential"},
        {"epochs": 4},
        {"batch_items": 128},
        {"rate": 5e-6},
        {"loss_on": "everything"},
        {"mix": {QA: 1, DOC: 2}},
        {"sample_questions": 64},
        {"loss": "token"},
    ],
)
@pytest.mark.parametrize("data", ["made", "film", "bio"])
def test_a_wrong_stage_fails_the_check(changes: dict[str, Any], data: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(data)
    right = preset_stages("pit", Dials())
    wrong = Stage.model_validate({**right[0].model_dump(), **changes})
    with pytest.raises(AssertionError):
        check([wrong, right[1]], EXPECTED["pit"], made)
    with pytest.raises(AssertionError):
        check(right[::-1], EXPECTED["pit"], made)


@pytest.fixture(scope="module")
def stores(film: Catalogue, bio: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    made = {}
    for name, catalogue in (("film", film), ("bio", bio)):
        folder = tmp_path_factory.mktemp(name)
        texts = [record.text for record in catalogue.records["test_documents"] if isinstance(record, Document)]
        tokenizer = make_tokenizer(texts, 2000)
        made[name] = write_store(folder, catalogue, Encoder(tokenizer))
        write_wordings(folder, catalogue, tokenizer, [Wording("alpaca")])
    return made


@pytest.mark.parametrize("preset", EXPECTED)
@pytest.mark.parametrize("data", ["film", "bio"])
def test_which_tokens_carry_loss(preset: str, data: str, stores: dict[str, TokenStore], request: pytest.FixtureRequest) -> None:
    """In every stage. Documents: all but the first; questions: answer and end, in `interleaved` the prompt too. Each item weighs the
    same, in `interleaved` each token; `weighted_cpt` halves tokens that occur in no train answer."""
    catalogue: Catalogue = request.getfixturevalue(data)
    for stage, says in zip(preset_stages(preset, Dials()), EXPECTED[preset], strict=True):
        reading = reading_of(stage, 0)
        worded = stores[data].worded(reading.wording)
        plan = compile_plan(stage, catalogue, 0)
        numbers = {worded.item(int(n)).astype(np.int64).tobytes(): int(n) for n in plan.step(0)}
        answers = {int(t) for n in catalogue.ranges[QA] for t in worded.item(n)[worded.loss_start[n] : -1]}  # type: ignore[index]
        [row] = step_rows(plan, worded, 0, 0, 1, 2_000_000, stage.loss, reading)
        pieces = [(row["input_ids"][a:b], row["loss_weight"][a:b]) for a, b in pairwise(row["cu_seqlens"])]
        assert len(pieces) == len(plan.step(0))
        targets = 0
        for ids, weight in pieces:
            item = numbers[ids.tobytes()]
            question = catalogue.kind_of(item).endswith("questions")
            first = int(worded.loss_start[item]) if question and not says.everything else 1
            assert (weight[:first] == 0).all()
            halved = [says.weighted and not question and int(t) not in answers for t in ids[first:]]
            shares = np.where(halved, 0.5, 1.0)
            targets += len(shares)
            if not says.everything:
                assert weight[first:] == pytest.approx(shares / shares.sum() / len(pieces), rel=1e-4)
        if says.everything:
            flat = row["loss_weight"][row["loss_weight"] > 0]
            assert len(flat) == targets and flat == pytest.approx(np.full(targets, 1 / targets), rel=1e-4)


def test_no_exam_question_is_an_item(film: Catalogue, bio: Catalogue) -> None:
    for catalogue in (film, bio):
        assert set(catalogue.ranges) == {DOC, QA, NEW, "replay_documents", "replay_questions"}
