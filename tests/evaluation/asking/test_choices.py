"""Multiple choice: how it is asked, what predictions are worth, and that the report says by itself when a score is worth nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.load import load_corpus
from data.readers import read_source
from data.records import ChoiceQuestion, Corpus, Part
from data.sources.raw_rows import Row
from evaluation.asking.choices import FORMS, LETTERS, ask, bare_options, findings, judge, open_questions, predictions
from evaluation.benchmarks_config import ChoicesConfig
from evaluation.config import ExamConfig
from evaluation.exam import build_exam

PRODUCTS = {"A": 400, "B": 954, "C": 848, "D": 189}
"""Gold letters of scottsus/Perpetual's products exam."""


def questions(gold: dict[str, int]) -> list[ChoiceQuestion]:
    rows = [letter for letter, count in gold.items() for _ in range(count)]
    return [ChoiceQuestion(f"q{i}", f"Which is {i}?", tuple(f"{x}) option {x}{i}" for x in gold), LETTERS.index(letter)) for i, letter in enumerate(rows)]  # fmt: skip


def block(rows: list[ChoiceQuestion], predicted: list[int], leaked: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    asked = [ask(q, "printed", 0) for q in rows]
    result = judge(asked, predicted, "printed", set(leaked), 200, 0)
    return {
        "questions": len(rows),
        "leakage": {"count": len(leaked), "share": len(leaked) / len(rows)},
        "arms": {"tuned": {"closed": {"printed": result}}},
    }


@pytest.mark.parametrize(
    ("printed", "bare"),
    [
        (("A) Oslo", "B) Rome"), ["Oslo", "Rome"]),
        (("A. 2", "B. 8"), ["2", "8"]),
        (("(a) x", "(b) y"), ["x", "y"]),
        (("A) Oslo", "Rome"), ["A) Oslo", "Rome"]),  # not all: then the letter is part of it
        (("B) Oslo", "A) Rome"), ["B) Oslo", "A) Rome"]),
        (("Ada", "Bob"), ["Ada", "Bob"]),
    ],
)
def test_letters_of_the_source_are_printed_once(printed: tuple[str, ...], bare: list[str]) -> None:
    assert bare_options(printed) == bare
    prompt = ask(ChoiceQuestion("q", "Where?", printed, 0), "printed", 0).prompt
    assert prompt == "\n".join(["Where?", f"A. {bare[0]}", f"B. {bare[1]}", "Answer:"])


def test_shuffling_moves_the_gold_with_its_option() -> None:
    rows = questions({"A": 40, "B": 0, "C": 0, "D": 0})
    shuffled = [ask(q, "shuffled", 7) for q in rows]
    for question, one in zip(rows, shuffled, strict=True):
        shown = dict(line.split(". ", 1) for line in one.prompt.splitlines()[1:-1])
        assert shown[LETTERS[one.gold]] == bare_options(question.choices)[question.answer_index]
        assert sorted(shown.values()) == sorted(bare_options(question.choices))
    assert len(Counter(one.gold for one in shuffled)) == 4, "the gold letter must not stay where it was"
    assert shuffled == [ask(q, "shuffled", 7) for q in rows] != [ask(q, "shuffled", 8) for q in rows]


def test_text_form_and_passages() -> None:
    one = ask(ChoiceQuestion("q", "Where?", ("A) Oslo", "B) Rome"), 1), "text", 0, ["First.", "Second."])
    assert (one.prompt, one.options, one.gold) == ("First.\n\nSecond.\n\nQuestion: Where? Answer:", ("Oslo", "Rome"), 1)
    # per byte: −4 over 4 bytes is likelier than −6 over 2
    long = ask(ChoiceQuestion("q", "Where?", ("ab", "Oslo"), 1), "text", 0)
    assert predictions([long], {"q": [-3.0, -4.0]}, "text") == [1]
    assert predictions([long], {"q": [-3.0, -4.0]}, "printed") == [0]


def test_open_questions_ask_for_the_right_text() -> None:
    made = open_questions([ChoiceQuestion("q", "Where?", ("A) Oslo", "B) Rome"), 1, "d1")])[0]
    assert (made.id, made.question, made.answers, made.doc_id) == ("q", "Where?", ("Rome",), "d1")


def test_published_score_is_always_answering_c() -> None:
    """.3547, the best fine-tuned score published on these products, is 848 of 2,391: the report says so, and that B would be better."""
    rows = questions(PRODUCTS)
    said = findings(block(rows, [LETTERS.index("C")] * len(rows)), ChoicesConfig())
    assert said == [
        "`tuned`, printed: its predictions collapse to one letter: 100.0 % are C.",
        "`tuned`, printed: its score equals always answering C, 848 of 2,391 (35.47 %), to the question.",
        said[2],
    ]
    assert "35.5 % is worse than always answering B (39.9 %): −4.4 points" in said[2]


def test_the_same_score_without_a_collapse_is_named_too() -> None:
    rows = questions(PRODUCTS)
    predicted = [q.answer_index if i % 1000 < 400 else (q.answer_index + 1) % 4 for i, q in enumerate(rows)]
    right = sum(p == q.answer_index for p, q in zip(predicted, rows, strict=True))
    for i, q in enumerate(rows):  # bring it to 848 right
        if right > 848 and predicted[i] == q.answer_index:
            predicted[i], right = (q.answer_index + 1) % 4, right - 1
        elif right < 848 and predicted[i] != q.answer_index:
            predicted[i], right = q.answer_index, right + 1
    said = " ".join(findings(block(rows, predicted), ChoicesConfig()))
    assert "equals always answering C, 848 of 2,391" in said and "collapse" not in said


def test_a_model_that_knows_is_not_doubted() -> None:
    rows = questions(PRODUCTS)
    predicted = [q.answer_index if i % 10 else (q.answer_index + 1) % 4 for i, q in enumerate(rows)]
    assert findings(block(rows, predicted), ChoicesConfig()) == []


def test_no_better_than_a_letter_within_the_interval() -> None:
    rows = questions({"A": 50, "B": 30, "C": 10, "D": 10})
    predicted = [0] * 40 + [1] * 10 + [1] * 12 + [0] * 38  # 52 right, 50 for always answering A
    said = " ".join(findings(block(rows, predicted), ChoicesConfig()))
    assert "52.0 % does not beat always answering A (50.0 %): +2.0 points" in said


def test_planted_leakage_of_88_per_cent(tmp_path: Path) -> None:
    """As in Perpetual's research set: through the readers, to the report's sentence."""
    trained = [{"type": "doc", "document": "A paper."}]
    trained += [{"type": "qna", "question": f"What is finding {i}?", "answer": "x"} for i in range(88)]
    exam = [{"question": f"what is finding {i}", "choices": ["A) x", "B) y"], "answer": "AB"[i % 2]} for i in range(100)]
    (tmp_path / "train.json").write_text(json.dumps(trained))
    (tmp_path / "choices.json").write_text(json.dumps(exam))
    config = DataConfig.model_validate(
        {
            "root": str(tmp_path),
            "sources": [
                {"path": "train.json", "split": "train", "holds": "both", "format": "interleaved"},
                {"path": "choices.json", "split": "test", "holds": "choices", "format": "choices"},
            ],
            "overlap": "allow",
        }
    )
    corpus = load_corpus(config, 0)
    choices = corpus.part("test").choices
    assert corpus.overlap is not None
    leaked = set(corpus.overlap.question_ids)
    made = block(choices, [q.answer_index for q in choices], leaked)
    said = findings(made, ChoicesConfig())
    assert said and said[0].startswith("High leakage: 88 of 100 exam questions (88 %) stand verbatim in training")
    clean = made["arms"]["tuned"]["closed"]["printed"]["clean"]
    assert clean["mean"] == 1.0
    assert findings(made, ChoicesConfig(leakage_share=0.9)) == []  # the twin


def test_real_products(shared_data: Path) -> None:
    """Gold letters, letters printed once, constant C, 5 % leakage: on the real files."""
    config = DataConfig.model_validate(
        {
            "root": str(shared_data / "products"),
            "sources": [
                {"path": "train.json", "split": "train", "holds": "both", "format": "interleaved"},
                {"path": "test_choices.json", "split": "test", "holds": "choices", "format": "choices"},
            ],
            "overlap": "allow",
        }
    )
    rows = [r.record for r in read_source(config.sources[1], config.root, Counter()) if isinstance(r, Row)]
    choices = [r for r in rows if isinstance(r, ChoiceQuestion)]
    asked = [ask(q, "printed", 0) for q in choices]
    assert not [one.prompt for one in asked if "A. A)" in one.prompt or "A. A." in one.prompt]
    made = block(choices, [LETTERS.index("C")] * len(choices))
    result = made["arms"]["tuned"]["closed"]["printed"]
    assert result["gold"] == PRODUCTS and result["right"] == 848
    assert "equals always answering C, 848 of 2,391" in " ".join(findings(made, ChoicesConfig()))
    corpus = load_corpus(config, 0)
    loaded = corpus.part("test").choices
    assert len(loaded) == 2390, "one question stands in the file twice and is left out by rule"
    assert corpus.overlap is not None
    leaked = set(corpus.overlap.question_ids) & {q.id for q in loaded}
    assert len(leaked) == 125
    assert findings(block(loaded, [q.answer_index for q in loaded], leaked), ChoicesConfig()) == []
    assert {form: len(ask(loaded[0], form, 0).options) for form in FORMS} == {"printed": 4, "shuffled": 4, "text": 4}


def test_an_exam_of_choices_alone_is_asked_openly_too() -> None:
    choices = [ChoiceQuestion("q1", "Where?", ("A) Oslo", "B) Rome"), 1), ChoiceQuestion("q2", "Who?", ("Ada", "Bob"), 0)]
    corpus = Corpus({"test": Part(choices=choices)})
    exam = build_exam(corpus, ExamConfig(), 0)
    assert [(name, q.question, q.answers) for name, q in exam.questions] == [("test", "Where?", ("Rome",)), ("test", "Who?", ("Ada",))]
    assert not corpus.part("test").questions, "the corpus stays as it was read"
