"""Scores by hand, SQuAD's own normalisation as the oracle, and the cases where metrics usually lie."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scores import exact_match, normalise, recall, rouge_l, score_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, brown FOX!", "quick brown fox"),
        ("  a\tfew \n words ", "few words"),
        ("An apple a day; the doctor's away.", "apple day doctors away"),
        ("theatre and anthem", "theatre and anthem"),  # articles are words, not prefixes
        ("1990–1995", "19901995"),  # en dash, as SQuAD does with "-"
        ("“Zoë’s”", "zoës"),
        ("Zoe\u0308", "zoë"),  # two code points or one
        ("ΑΘΗΝΑ", "αθηνα"),
        ("", ""),
        ("The", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def squad_normalise(s: str) -> str:
    """SQuAD's evaluate-v1.1.py, copied."""
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_normalise_is_squads_on_ascii(text: str) -> None:
    assert normalise(text) == squad_normalise(text)


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "contained", "f1", "rouge"),
    [
        ("Paris", ["paris"], 1, 1, 1, 1),
        ("The city of Paris.", ["Paris"], 0, 1, 0.5, 0.4),  # F1: city, of, paris; ROUGE-L keeps the article: P 1/4, R 1
        ("Paris", ["Paris, France"], 0, 0, 2 / 3, 2 / 3),
        ("in 1995", ["9"], 0, 0, 0, 0),  # containment on word boundaries
        ("France and Paris", ["Paris, France"], 0, 0, 0.8, 0.4),  # F1 ignores order, the common subsequence is one word
        ("Lyon", ["Paris", "Lyon"], 1, 1, 1, 1),  # the best over the gold answers
        ("", ["Paris"], 0, 0, 0, 0),
        ("...", ["Paris"], 0, 0, 0, 0),
        ("Zürich", ["zürich"], 1, 1, 1, 1),
        ("Москва", ["москва"], 1, 1, 1, 1),  # rouge-score's own tokenizer would give 0
        ("Paris Paris Paris", ["Paris"], 0, 1, 0.5, 0.5),  # words are counted as often as they occur
    ],
)
def test_scores_by_hand(prediction: str, golds: list[str], em: float, contained: float, f1: float, rouge: float) -> None:
    scores = score_answer(prediction, golds)
    assert scores == pytest.approx({"em": em, "recall": contained, "f1": f1, "rouge_l": rouge})


@pytest.mark.parametrize("prediction", ["", "anything at all", "the", "."])
@pytest.mark.parametrize("golds", [[], [""], ["  "]])
def test_a_blank_gold_answer_is_in_nothing(prediction: str, golds: list[str]) -> None:
    assert score_answer(prediction, golds) == {"em": 0, "recall": 0, "f1": 0, "rouge_l": 0}


def test_golds_that_normalise_to_nothing_are_not_found_everywhere() -> None:
    """Grade "A" would lose its article and then stand in every output."""
    assert exact_match("A", ["A"]) == recall("It was a.", ["A"]) == exact_match("+", ["+"]) == 1
    assert exact_match("", ["A"]) == exact_match("B", ["A"]) == recall("B", ["A"]) == recall("-", ["+"]) == token_f1("B", ["A"]) == 0


@given(
    st.lists(st.sampled_from(["red", "green", "blue", "the", "9"]), max_size=6),
    st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, max_size=6),
)
def test_exact_implies_contained_and_full_f1(prediction: list[str], gold: list[str]) -> None:
    said, golds = " ".join(prediction), [" ".join(gold)]
    scores = score_answer(said, golds)
    assert all(0 <= s <= 1 for s in scores.values())
    assert scores["em"] <= scores["recall"]
    assert scores["em"] <= scores["f1"] + 1e-12


def test_rouge_equals_the_packages_own_on_ascii() -> None:
    from rouge_score import rouge_scorer

    theirs = rouge_scorer.RougeScorer(["rougeL"])
    for prediction, gold in [
        ("born on 3 May, 1990 in Oslo", "3 May 1990"),
        ("snake_case and CamelCase", "snake case"),
        ("a-b c", "a b, c"),
    ]:
        assert rouge_l(prediction, [gold]) == pytest.approx(theirs.score(gold, prediction)["rougeL"].fmeasure)
