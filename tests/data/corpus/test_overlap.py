"""What stands in training and in the exam, under every policy."""

from pathlib import Path
from typing import Any

import pytest

from console import UserError
from data.ground.words import normalise
from tests.data.corpus.test_load import DOCUMENTS, QUESTIONS, load, sizes

SHARED_QUESTION = {"question": "what   is ANN", "answer": "a baker!"}


SETS: dict[str, Any] = {
    "train_documents": DOCUMENTS,
    "train_questions": QUESTIONS,
    "test_documents": [{"id": "n", "text": "New."}, {"id": "m", "text": "bob is a sailor"}],
    "test_questions": [
        SHARED_QUESTION,
        {"question": "What is new?", "answer": "n", "doc_id": "n"},
        {"question": "Bob?", "answer": "b", "doc_id": "m"},
    ],
}


def test_overlap_is_refused_by_default(tmp_path: Path) -> None:
    expected = (
        r"1 of 3 exam questions and 1 of 2 exam documents also stand in training; the first: .*test_questions.jsonl:1 = .*train_questions.jsonl:1: "
        r"what is ANN; decide with data.overlap=drop_from_train\|drop_from_exam\|allow"
    )
    with pytest.raises(UserError, match=expected):
        load(tmp_path, **SETS)
    load(
        tmp_path,
        **(
            SETS
            | {"test_questions": SETS["test_questions"][1:], "test_documents": [{"id": "n", "text": "New."}, {"id": "m", "text": "Bob"}]}
        ),
    )


def test_overlap_allowed_is_reported(tmp_path: Path) -> None:
    corpus = load(tmp_path, options={"overlap": "allow"}, **SETS)
    report = corpus.overlap
    assert report and report.policy == "allow" and report.dropped == {} and report.same_answer == 1 and len(report.examples) == 2
    assert report.question_ids == ("test_questions.jsonl:1",) and report.document_ids == ("m",)
    assert sizes(corpus) == {"train_documents": 2, "train_questions": 2, "test_documents": 2, "test_questions": 3}


def test_overlap_dropped_from_train_takes_the_documents_questions(tmp_path: Path) -> None:
    corpus = load(tmp_path, options={"overlap": "drop_from_train"}, **SETS)
    assert sizes(corpus) == {"train_documents": 1, "test_documents": 2, "test_questions": 3}
    assert corpus.overlap and corpus.overlap.dropped == {"train_documents": 1, "train_questions": 2}
    assert all(refusal.by_rule for intake in corpus.intakes for refusal in intake.refused)


def test_overlap_dropped_from_the_exam(tmp_path: Path) -> None:
    corpus = load(tmp_path, options={"overlap": "drop_from_exam"}, **SETS)
    assert sizes(corpus) == {"train_documents": 2, "train_questions": 2, "test_documents": 1, "test_questions": 1}
    assert corpus.overlap and corpus.overlap.dropped == {"test_documents": 1, "test_questions": 2}
    assert corpus.overlap.question_ids == ("test_questions.jsonl:1",)


def test_replay_counts_as_training_and_choices_as_exam(tmp_path: Path) -> None:
    choices = [{"question": "What is Ann?", "choices": ["A) A pilot", "B) A baker"], "answer": "B"}]
    corpus = load(tmp_path, options={"overlap": "allow"}, replay_questions=[SHARED_QUESTION], test_choices=choices)
    assert corpus.overlap and len(corpus.overlap.question_ids) == 1 and corpus.overlap.same_answer == 1
    corpus = load(tmp_path, train_choices=choices, test_choices=choices)  # choices are never trained
    assert corpus.overlap and corpus.overlap.question_ids == ()


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("What is  Ann?", "what is ann", True),
        ("“Ann”—a baker", 'ann: "a" (baker)', True),
        ("café", "cafe\u0301", True),
        ("C++", "C", False),
        ("कि", "का", False),  # vowel signs are no punctuation
        ("???", "!!!", False),
        ("resume", "résumé", False),
    ],
)
def test_normalise(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_no_question_of_the_other_side_goes(tmp_path: Path) -> None:
    """An exam question about a document of training whose text stands in the exam too: it left the exam, under `drop_from_train`."""
    sets: dict[str, Any] = {
        "train_documents": DOCUMENTS,
        "train_questions": QUESTIONS,
        "test_documents": [{"id": "m", "text": DOCUMENTS[0]["text"]}],
        "test_questions": [{"question": "Of whom is it said?", "answer": "x", "doc_id": DOCUMENTS[0]["id"]}],
    }
    corpus = load(tmp_path, options={"overlap": "drop_from_train"}, **sets)
    assert sizes(corpus)["test_questions"] == 1 and corpus.overlap and set(corpus.overlap.dropped) <= {"train_documents", "train_questions"}
