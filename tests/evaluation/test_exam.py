"""What is asked: samples, windows, keys; and what one sitting records."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import UserError
from data.config import Bios
from data.corpus.bios import make_bios
from data.records import Corpus, Document, Part, Question
from evaluation.asking.prompts import Found
from evaluation.config import ExamConfig
from evaluation.exam import Exam, build_exam, in_other_words, sample, split_windows, tokenise
from evaluation.sitting import sit


def corpus(test: int = 6, train: int = 20) -> Corpus:
    def part(name: str, count: int) -> Part:
        documents = [Document(f"{name}-d{i}", f"Text {i}. " * (i + 1)) for i in range(count // 2)]
        golds = [(f"Person {i}", f"P. {i}") for i in range(count)]
        return Part(
            documents, [Question(f"{name}-q{i}", f"Who is {name} {i}?", golds[i], doc_id=f"{name}-d{i // 2}") for i in range(count)]
        )

    return Corpus({"train": part("train", train), "test": part("test", test), "replay": Part()})


class Letters:
    """A token a letter."""

    eos_id = 0
    start = [1]

    def prompt(self, question: str) -> list[int]:
        return [1, *map(ord, question)]

    def prompt_text(self, question: str) -> str:
        return question

    def before(self, text: str) -> list[int]:
        return [*map(ord, text), 10]

    def solved(self, question: Question) -> list[int]:
        return self.before(f"{question.question} {question.answers[0]}")

    def gold(self, question: Question) -> list[int]:
        return list(map(ord, question.answers[0]))

    def gold_length(self, question: Question) -> int:
        return len(self.gold(question))

    def document(self, document: Document) -> list[int]:
        return [1, *map(ord, document.text)] if document.text else [1]


class Parrot:
    """Knows the answer to questions that end in an even number; each document token costs 0.5 nats."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.scored: set[tuple[int, ...]] = set()

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Any]:
        self.calls.append(len(prompts))
        self.found_in_cache = all(any(ids[: len(p)] == tuple(p) for ids in self.scored) for p in prompts[:3])
        last = ["".join(map(chr, p[1:])).splitlines()[-1] for p in prompts]
        numbers = [int("".join(c for c in text if c.isdigit())) for text in last]
        texts = [f" Person {n}\nQuestion: next?" if n % 2 == 0 else " no idea" for n in numbers]
        return [{"token_ids": [5, eos_id], "text": t, "finish_reason": "stop", "logprob": -0.25} for t in texts]

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        self.scored |= set(map(tuple, sequences))
        return [-0.5 * (len(s) - start) for s, start in zip(sequences, starts or [1] * len(sequences), strict=True)]


def test_sets_and_samples() -> None:
    exam = build_exam(corpus(), ExamConfig(train_questions=5, documents=2), seed=0)
    names = [name for name, _ in exam.questions]
    assert names == ["test"] * 6 + ["train"] * 5
    assert len(exam.documents) == 2
    assert len(build_exam(corpus(), ExamConfig(test_questions=4), seed=0).questions) == 4 + 20


def test_an_exam_needs_questions() -> None:
    with pytest.raises(UserError, match="no test questions"):
        build_exam(Corpus({"train": Part()}), ExamConfig(), seed=0)


def test_samples_nest_and_keep_order() -> None:
    records = [Document(str(i), "") for i in range(50)]
    chosen = {count: sample(records, count, 7) for count in (0, 5, 20, 50, 80)}
    assert [len(c) for c in chosen.values()] == [0, 5, 20, 50, 50]
    assert {d.id for d in chosen[5]} <= {d.id for d in chosen[20]}
    assert [int(d.id) for d in chosen[20]] == sorted(int(d.id) for d in chosen[20])
    assert sample(records, 5, 7) != sample(records, 5, 8)
    assert {d.id for d in chosen[5]} >= {d.id for d in sample([*records, Document("new", "")], 5, 7)} - {"new"}


@given(st.integers(0, 60), st.integers(2, 20))
def test_windows_score_every_token_but_the_first_once(length: int, limit: int) -> None:
    windows = split_windows(list(range(length)), limit)
    assert [token for window in windows for token in window[1:]] == list(range(1, length))
    assert all(2 <= len(window) <= limit for window in windows)


def test_one_sitting() -> None:
    exam = build_exam(corpus(test=600), ExamConfig(train_questions=10, documents=3, answer_tokens=16), seed=0)
    paper = tokenise(exam, Letters(), positions=64)
    assert paper.max_model_len <= 64
    seen: list[int] = []
    parrot = Parrot()
    sitting = sit(exam, paper, parrot, 0, seen.append)
    rows, losses = sitting.rows, sitting.losses
    assert sum(seen) == len(exam)
    assert max(parrot.calls) <= 256
    assert parrot.found_in_cache, "vLLM computes a prompt twice whose answer is asked before it is scored"
    assert [r["em"] for r in rows[:4]] == [1, 0, 1, 0]
    assert rows[0]["prompt"] == "Who is test 0?"  # as it was asked
    assert rows[0]["answer"] == "Person 0"  # without the space that belongs to the first token
    json.dumps(rows)  # plain values: `examine --json` prints them
    assert rows[0]["output"] == "Person 0\nQuestion: next?"  # only its first line is the answer
    assert (rows[0]["mode"], rows[0]["logprob"], rows[0]["gold_logprob"]) == ("closed", -0.25, -0.5 * len("Person 0"))
    assert rows[-1]["set"] == "train" and rows[-1]["gold_logprob"] is None
    assert (rows[0]["doc_id"], rows[0]["set"], rows[0]["gold"], rows[0]["answer_tokens"]) == ("test-d0", "test", ["Person 0", "P. 0"], 2)
    for loss, document in zip(losses, exam.documents, strict=True):  # whole, although longer than the model's 64 positions
        assert (loss.tokens, loss.nll) == (len(document.text), 0.5 * len(document.text))


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    exam = build_exam(corpus(), ExamConfig(answer_tokens=64), seed=0)
    with pytest.raises(
        UserError,
        match=r"question t\S+: its prompt of \d+ tokens .* exceed the model's positions, which leave 6 for prompts; lower exam.answer_tokens",
    ):
        tokenise(exam, Letters(), positions=70)


def test_an_empty_document_has_no_tokens() -> None:
    data = corpus()
    data.part("test").documents = [Document("empty", "")]
    exam = build_exam(data, ExamConfig(), seed=0)
    losses = sit(exam, tokenise(exam, Letters(), None), Parrot(), 0, lambda n: None).losses
    assert (losses[0].tokens, losses[0].nll) == (0, 0)


def modes_of(exam: Exam) -> dict[str, int]:
    looks = tokenise(exam, Letters(), None, FOUND).looks
    return dict(Counter(look.mode for look in looks))


FOUND = {f"test-q{i}": [Found(f"test-d{d}#0", f"test-d{d}", f"Text {d}.") for d in (2, 1, 0)] for i in range(6)}


def test_the_base_is_asked_in_more_ways() -> None:
    config = ExamConfig(train_questions=4)
    base = build_exam(corpus(), config, 0, config.base_modes)
    arms = build_exam(corpus(), config, 0, config.modes)
    assert modes_of(base) == {"closed": 10, "few_shot": 6, "retrieval": 6, "open": 6}
    assert modes_of(arms) == {"closed": 10, "retrieval": 6}
    assert modes_of(arms.closed()) == {"closed": 10}
    assert len(base.exemplars) == 5 and {q.id[:5] for q in base.exemplars} == {"train"}
    assert build_exam(Corpus({"test": corpus().parts["test"]}), config, 0, config.base_modes).modes == ("closed", "retrieval", "open")


def test_rows_tell_what_was_found_and_cut() -> None:
    exam = build_exam(corpus(), ExamConfig(train_questions=0, answer_tokens=16), 0, ["closed", "retrieval", "conflict"])
    paper = tokenise(exam, Letters(), 48, FOUND)
    assert paper.max_model_len <= 48
    rows = sit(exam, paper, Parrot(), 0, lambda n: None).rows
    found = [r for r in rows if r["mode"] == "retrieval"]
    assert [r["gold_rank"] for r in found] == [3, 3, 2, 2, 1, 1]  # documents 0, 0, 1, 1, 2, 2
    assert found[0]["retrieved"] == ["test-d2#0", "test-d1#0", "test-d0#0"]
    # 14 letters and their start leave 17 of 32 for three passages of 8: two fit
    assert [r["context_cut"] for r in found] == [8] * 6
    assert all(r["context_cut"] == 0 and r["retrieved"] == [] for r in rows if r["mode"] == "closed")
    assert [r["mode"] for r in rows].count("conflict") == 0  # "Person 0" stands in no document
    refuse = build_exam(corpus(), ExamConfig(answer_tokens=16, long_context="refuse"), 0, ["closed", "retrieval"])
    with pytest.raises(UserError, match="tokens of context"):
        tokenise(refuse, Letters(), 48, FOUND)


def test_conflict_rows_follow_the_context_or_not() -> None:
    data = corpus()
    data.part("test").documents = [Document(f"test-d{i}", f"Person {2 * i} met Person {2 * i + 1}.") for i in range(3)]
    exam = build_exam(data, ExamConfig(train_questions=0), 0, ["closed", "conflict"])
    rows = [r for r in sit(exam, tokenise(exam, Letters(), None), Parrot(), 0, lambda n: None).rows if r["mode"] == "conflict"]
    assert len(rows) == 6
    assert all(r["swapped"] not in r["gold"] and r["follows"] == 0 for r in rows)  # the parrot never looks at it
    assert [r["em"] for r in rows] == [1, 0] * 3


def test_harder_looks_are_asked_for() -> None:
    bios = make_bios(Bios(replay_people=3, train_people=3, test_people=4), 0)
    other = in_other_words(bios.part("test").questions)
    assert len(other) == 4 * 20
    trained = {
        text
        for part in bios.parts.values()
        for q in part.questions
        for text in (q.question, *(q.wordings if part != bios.part("test") else ()))
    }
    asked = [question for question in bios.part("test").questions for _ in range(4)]
    for question, reworded in zip(asked, other, strict=True):
        assert (reworded.id, reworded.answers, reworded.doc_id) == (question.id, question.answers, question.doc_id)
        assert reworded.question not in trained
        title = next(d.title for d in bios.part("test").documents if d.id == question.doc_id)
        assert title and title in reworded.question and title in question.question
    plain = build_exam(bios, ExamConfig(), 0, ["closed", "retrieval"])
    assert "wordings" not in {name for name, _ in plain.questions} and not plain.side_effects
    config = ExamConfig(looks=["wordings", "depths", "side_effects"], test_questions=7)
    exam = build_exam(bios, config, 0, ["closed", "retrieval"])
    assert [name for name, _ in exam.questions].count("wordings") == 4 * 7
    fewer = replace(bios, parts={**bios.parts, "test": replace(bios.part("test"), questions=[replace(q, wordings=()) for q in asked[::4]])})
    with pytest.raises(UserError, match="no test question has another wording; write some with python -m data wordings"):
        build_exam(fewer, config, 0)
    assert exam.modes == ("closed", "retrieval", "retrieval_1", "retrieval_5", "retrieval_10")
    for elsewhere, asked in exam.side_effects:
        assert elsewhere.id.startswith("replay") and asked.id.startswith("test") and elsewhere.answers != asked.answers
    nothing: dict[str, list[Found]] = {q.id: [] for _, q in exam.questions}
    sitting = sit(exam, tokenise(exam, Letters(), None, nothing), Silent(), 0, lambda n: None)
    answers = {q.doc_id: [len(b.answers[0]) for _, b in exam.side_effects if b.doc_id == q.doc_id] for _, q in exam.side_effects}
    assert len(sitting.side_effects) == len(exam.side_effects) > 0
    for effect in sitting.side_effects:
        assert -2 * effect["logprob"] in answers[effect["doc_id"]]  # half a nat for each letter of the answer, none for the question


class Silent(Parrot):
    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Any]:
        return [{"token_ids": [eos_id], "text": "", "finish_reason": "stop", "logprob": -1.0} for _ in prompts]


def test_retention_is_a_set_of_its_own() -> None:
    retention = [Question(f"nq-{i}", f"Who is {i}?", ("Person 0",)) for i in range(9)]
    exam = build_exam(corpus(), ExamConfig(retention_questions=4), 0, retention=retention)
    assert [name for name, _ in exam.questions].count("retention") == 4


def test_closed_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="modes: closed is missing"):
        ExamConfig(modes=["retrieval"])


def test_a_mode_or_its_settings_ask_for_a_new_exam() -> None:
    config = ExamConfig()

    def key(data: Corpus | None = None, modes: Sequence[str] = ("closed", "retrieval"), **more: Any) -> str:
        return build_exam(data or corpus(), ExamConfig(**more), 0, modes).fingerprint()

    renamed = corpus()
    renamed.part("train").documents[0] = Document("train-d0", "Another text.")
    retrieval = config.retrieval.model_dump()
    different = [
        key(),
        key(modes=["closed"]),
        key(modes=config.base_modes),
        key(retrieval={**retrieval, "k": 5}),
        key(retrieval={**retrieval, "embedder": "BAAI/bge-large-en-v1.5"}),
        key(renamed),  # another document in the knowledge base
        key(long_context="refuse"),
        key(looks=["side_effects"]),
        key(retrieval={**retrieval, "passage_tokens": 64}),
        key(reading={"lead": "Be brief."}),
    ]
    assert len(set(different)) == len(different)
    assert key(renamed, ["closed"]) == key(modes=["closed"])  # which `closed` does not see
    assert key(retrieval={**retrieval, "k": 5}, modes=["closed"]) == key(modes=["closed"])
    assert key(reading={"lead": "Be brief."}, modes=["closed", "few_shot"]) == key(modes=["closed", "few_shot"])  # nothing is read there
    assert key() == "fbb239ded759861c9c7b75f5883f45e477bd007eeecb016e337c121307acb1c4", "written down before there was exam.reading"
