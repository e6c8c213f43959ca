"""Every preset on the papers' own kind of data, its plan checked against the paper's description (PIT, arXiv 2402.12847, Table 1 and 3).

The check reads the plan alone: what is trained in which stage, how often, in which order, in how many steps, with which loss.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.config import DataConfig, Dials, Stage
from data.curriculum import PRESETS, preset_stages
from data.load import load_corpus
from data.plan import compile_plan
from data.records import Document
from data.rows import reading_of, step_rows
from data.templates import Wording
from data.tiny_tokenizer import make_tokenizer
from data.tokens import Encoder, TokenStore, write_store, write_wordings

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
    questions_before_document: bool = False
    batch: int = 256
    weighted: bool = False
    everything: bool = False


NEW_DOCUMENTS = Described({NEW: 10}, 3e-5, riding=64)
INSTRUCTION = Described({QA: 1}, 5e-6)
PIT = Described({QA: 3, DOC: 3}, 3e-5, questions_before_document=True)
BOTH_DOCUMENTS = Described({DOC: 10, NEW: 10}, 3e-5)
PAPER = {
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
    "interleaved": [Described({QA: 3, DOC: 3}, 2e-4, batch=8, everything=True)],
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
        assert plan.num_steps == ceil(own / says.batch) * max(says.epochs.values())
        assert stage.rate == says.rate
        if not says.everything:
            assert (stage.schedule, stage.final_rate_share, stage.warmup_steps, stage.loss) == ("cosine", 0.1, 0, "example")
        if says.questions_before_document:
            assert questions_just_before(plan.items, catalogue), "the QA of a document stand just before it"
        assert stage.other_weight == (0.5 if says.weighted else 1.0)
        assert stage.loss_on == ("everything" if says.everything else "answers")


def questions_just_before(items: np.ndarray, catalogue: Catalogue) -> bool:
    """Each question is followed by a question of its document or by the document itself."""
    document = np.where(catalogue.document_of[items] >= 0, catalogue.document_of[items], items)
    questions = np.flatnonzero(catalogue.document_of[items] >= 0)
    return bool(questions[-1] < len(items) - 1 and (document[questions + 1] == document[questions]).all())


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
    check(preset_stages(preset, Dials()), PAPER[preset], request.getfixturevalue(data))


@pytest.mark.parametrize("preset", PAPER)
def test_steps_on_the_papers_counts(preset: str, film: Catalogue, made: Catalogue) -> None:
    steps = [compile_plan(s, film, 0).num_steps for s in preset_stages(preset, Dials())]
    assert steps == [compile_plan(s, made, 0).num_steps for s in preset_stages(preset, Dials())]
    if preset == "pit":
        assert steps == [159, 10]  # PAPER: 53 steps an epoch, 1 an epoch


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "shuffled"},
        {"order": "documents_first"},
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
def test_a_wrong_stage_fails_the_check(changes: dict[str, Any], made: Catalogue) -> None:
    right = preset_stages("pit", Dials())
    wrong = Stage.model_validate({**right[0].model_dump(), **changes})
    with pytest.raises(AssertionError):
        check([wrong, right[1]], PAPER["pit"], made)
    with pytest.raises(AssertionError):
        check(right[::-1], PAPER["pit"], made)


@pytest.fixture(scope="module")
def store(film: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("film")
    texts = [record.text for record in film.records["test_documents"] if isinstance(record, Document)]
    tokenizer = make_tokenizer(texts, 2000)
    made = write_store(folder, film, Encoder(tokenizer))
    write_wordings(folder, film, tokenizer, [Wording("alpaca")])
    return made


@pytest.mark.parametrize("preset", ["pit", "cpt", "weighted_cpt", "interleaved"])
def test_which_tokens_carry_loss(preset: str, film: Catalogue, store: TokenStore) -> None:
    """Documents: all but the first; questions: answer and end. weighted_cpt halves some; interleaved learns the prompt too."""
    stage = preset_stages(preset, Dials())[0]
    reading = reading_of(stage, 0)
    worded = store.worded(reading.wording)
    plan = compile_plan(stage, film, 0)
    starts = {worded.item(int(n)).astype(np.int64).tobytes(): int(n) for n in plan.step(0)}
    rows = step_rows(plan, worded, 0, 0, 1, 4096, stage.loss, reading)
    values = set()
    for row in rows:
        for a, b in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False):
            item, weight = starts[row["input_ids"][a:b].tobytes()], row["loss_weight"][a:b]
            question = film.kind_of(item).endswith("questions")
            first = int(worded.loss_start[item]) if question and preset != "interleaved" else 1
            assert (weight[:first] == 0).all() and (weight[first:] > 0).all()
            values |= {round(float(v / weight.max()), 3) for v in weight[first:]}
    assert values == ({1.0, 0.5} if preset == "weighted_cpt" else {1.0})
    assert sum(row["loss_weight"].sum() for row in rows) == pytest.approx(1.0, rel=1e-4)


def test_no_exam_question_is_an_item(film: Catalogue, bio: Catalogue) -> None:
    for catalogue in (film, bio):
        assert set(catalogue.ranges) == {DOC, QA, NEW, "replay_documents", "replay_questions"}
