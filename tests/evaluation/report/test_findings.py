"""What the report says beyond one number, from made rows: values by hand."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import Corpus, Document, OverlapReport, Part, Question
from evaluation.report import findings
from evaluation.report.adaptive import adaptive, best_threshold
from evaluation.score_files import Score


def row(number: int, em: float, mode: str = "closed", set_name: str = "test", **more: Any) -> dict[str, Any]:
    answer = "Oslo" if em else "no idea"
    return {
        "set": set_name,
        "mode": mode,
        "question_id": f"{set_name}-{number}",
        "doc_id": f"d{number // 2}",
        "answer": answer,
        "output": answer,
        "gold": ["Oslo"],
        "em": float(em),
        "recall": float(em),
        "f1": float(em),
        "rouge_l": float(em),
        "finish_reason": "stop",
        **more,
    }


def rows(right: str, mode: str = "closed", set_name: str = "test", **more: Any) -> list[dict[str, Any]]:
    """ "1010": the first and third question right; `more` holds a value for each question."""
    return [row(i, c == "1", mode, set_name, **{key: values[i] for key, values in more.items()}) for i, c in enumerate(right)]


BASE = Score([*rows("0000"), *rows("1000", "few_shot"), *rows("1110", "retrieval"), *rows("1111", "open")], {})
PIT = Score([*rows("1100"), *rows("1110", "retrieval", gold_rank=[1, 4, None, 2], context_cut=[0, 0, 7, 0])], {"retrieval": {"k": 3}})


def test_modes_by_hand() -> None:
    assert list(findings.modes(BASE, 200, 0)) == ["closed", "few_shot", "retrieval", "open"]
    found = findings.modes(PIT, 200, 0)
    retrieval = found["retrieval"]
    assert retrieval["em"]["mean"] == 0.75
    assert retrieval["minus_closed"]["mean"] == 0.25
    assert retrieval["context_cut"] == 0.25
    assert retrieval["hit_at"] == {"1": 0.25, "3": 0.5, "5": 0.75, "10": 0.75}
    assert retrieval["hit_rate"] == 0.5  # three were shown
    assert found["closed"]["minus_closed"] is None
    json.dumps(found)


def test_the_share_of_the_way() -> None:
    found = findings.bounds({"base": BASE, "pit": PIT}, 500, 0)
    assert found is not None
    # from few-shot 1/4, the better of the two: to retrieval 3/4, to the open book 1; pit is at 1/2
    assert (found["closed"], found["closed_mode"], found["retrieval"], found["open"]) == (0.25, "few_shot", 0.75, 1)
    # documents (gained, possible): with retrieval (1, 1) and (0, 1); with the open book (1, 1) and (0, 2)
    assert found["recovered"]["pit"]["retrieval"] == {"mean": 0.5, "low": 0, "high": 1}
    assert found["recovered"]["pit"]["open"] == {"mean": pytest.approx(1 / 3), "low": 0, "high": 1}
    useless = Score([*rows("1000"), *rows("1000", "retrieval")], {})
    found = findings.bounds({"base": useless, "pit": PIT}, 500, 0)
    assert found is not None and found["recovered"]["pit"] == {"retrieval": None, "open": None}
    shaky = Score([*rows("0000"), *rows("1000", "retrieval")], {})  # one document helps: absent from a quarter of the resamples
    found = findings.bounds({"base": shaky, "pit": PIT}, 500, 0)
    assert found is not None and found["recovered"]["pit"]["retrieval"] is None
    assert findings.bounds({"pit": PIT}, 500, 0) is None


def test_what_the_base_knew() -> None:
    found = findings.known_before({"base": BASE, "pit": PIT}, 200, 0)
    assert found is not None
    assert found["share"] == 0.25
    assert found["warning"].startswith("the base answers 25 % of the test questions by itself: look at the scores on the other 3 questions")
    assert (found["unknown"]["pit"]["n"], found["unknown"]["pit"]["em"]["mean"]) == (3, pytest.approx(1 / 3))
    quiet = findings.known_before({"base": Score(rows("00000"), {}), "pit": PIT}, 200, 0)
    assert quiet == {"share": 0, "warning": None, "unknown": {}}


def test_positions() -> None:
    thirds = ["first", "first", "last", None]
    found = findings.by_position({"pit": Score(rows("1011", position=thirds), {})})
    assert found["pit"] == {
        "first": {"n": 2, "em": 0.5},
        "middle": {"n": 0, "em": None},
        "last": {"n": 1, "em": 1},
        "nowhere": {"n": 1, "em": 1},
    }


def test_lost_is_what_the_base_knew() -> None:
    base = Score([*rows("1110", set_name="replay"), *rows("11", set_name="retention")], {})
    said = ["Oslo", "It was in Oslo, I think.", "Rome", "Oslo"]
    after = Score([*rows("1001", set_name="replay", output=said), *rows("10", set_name="retention")], {})
    totals, by_set = findings.lost({"base": base, "pit": after})
    assert by_set["replay"] == {"pit": {"known": 3, "lost": 2, "wrong_format": 1, "wrong_fact": 1}}
    assert totals == {"pit": {"known": 5, "lost": 3, "wrong_format": 1, "wrong_fact": 2}}
    assert findings.lost({"pit": after}) == ({}, {})


def test_retention() -> None:
    scores = {name: Score(rows(right, set_name="retention"), {}) for name, right in (("base", "1110"), ("pit", "1000"))}
    found = findings.retention(scores, 200, 0)
    assert found is not None and found["questions"] == 4
    assert found["arms"]["base"]["em"]["mean"] == 0.75 and found["arms"]["base"]["minus_base"] is None
    assert found["arms"]["pit"]["minus_base"]["mean"] == -0.5
    assert findings.retention({"pit": PIT}, 200, 0) is None


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("Paris, France", True),
        ("Question: where? Answer: France, Paris", True),  # other order
        ("the answer: Paris and France. Then more.", True),
        ("Paris", False),  # half of it is another answer
        ("France", False),
        ("", False),
        ("Lyon, France", False),
    ],
)
def test_a_lenient_reading(output: str, says: bool) -> None:
    assert findings.says_it(output, ["Paris, France"]) is says


def test_leakage_and_the_clean_subset() -> None:
    long = "In which of the many cities of the far north was the famous Ada born so long ago"
    test = [
        Question(f"test-{i}", text, (gold,), f"d{i // 2}")
        for i, (text, gold) in enumerate([(long, "Oslo"), ("q1", "Rome"), ("q2", "Bern")])
    ]
    train = [Question("t0", f"Tell me: {long}?", ("Bern",)), Question("t1", "q1", ("Paris",))]
    overlap = OverlapReport("allow", question_ids=("test-1",))
    data = Corpus({"test": Part([Document("d0", "x")], test), "train": Part([], train)}, overlap=overlap)
    score = Score([{**r, "gold": list(q.answers)} for r, q in zip(rows("110"), test, strict=False)], {})
    found = findings.leakage(data, {"pit": score}, 200, 0)
    assert {key: found[key] for key in ("questions", "shared_runs", "also_trained", "answer_trained", "clean")} == {
        "questions": 3,
        "shared_runs": 1,
        "also_trained": 1,
        "answer_trained": 1,
        "clean": 1,
    }
    assert found["arms"]["pit"]["clean"]["em"]["mean"] == 0  # test-2 alone
    assert found["arms"]["pit"]["answer_not_trained"]["em"]["mean"] == 1  # test-0 and test-1
    assert findings.leakage(data, {}, 200, 0)["arms"] == {}


def test_adaptive_uses_retrieval_where_the_model_is_unsure() -> None:
    """Sure (−0.1) and right alone, unsure (−5) and right with help; help spoils what was sure. In every document alike."""
    alone = rows("10" * 20, logprob=[-0.1, -5.0] * 20)
    helped = rows("01" * 20, "retrieval")
    found = adaptive({"pit": Score([*alone, *helped], {})})["pit"]
    assert (found["em"], found["retrieved"], found["closed"], found["always"]) == (1, 0.5, 0.5, 0.5)
    assert found["curve"][0] == {"retrieved": 0, "em": 0.5}
    assert found["curve"][-1] == {"retrieved": 1, "em": 0.5}
    assert max(point["em"] for point in found["curve"]) == 1
    assert adaptive({"pit": Score(alone, {})}) == {}


def test_adaptive_is_not_flattered_by_its_own_answers() -> None:
    """Where confidence says nothing, the threshold of the other half gains nothing on average; the best of the curve would."""
    gains, flattered = [], []
    for trial in range(60):
        rng = np.random.default_rng(trial)
        a, b = ("".join(rng.choice(["0", "1"], size=60)) for _ in range(2))
        score = Score([*rows(a, logprob=rng.normal(size=60).tolist()), *rows(b, "retrieval")], {})
        found = adaptive({"pit": score})["pit"]
        gains.append(found["em"] - 0.5)
        flattered.append(max(point["em"] for point in found["curve"]) - 0.5)
    assert abs(np.mean(gains)) < 0.03  # standard error of 60 trials of 60 questions: 0.008
    assert np.mean(flattered) > 0.06


@given(st.lists(st.tuples(st.integers(-5, 0), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20))
def test_best_threshold_is_the_best_of_all(cases: list[tuple[int, int, int]]) -> None:
    sure, alone, helped = (np.array(column, dtype=float) for column in zip(*cases, strict=True))
    chosen = best_threshold(sure, alone, helped)
    best = max(np.where(sure < t, helped, alone).sum() for t in [*sure, np.inf])
    assert np.where(sure < chosen, helped, alone).sum() == best


def test_side_effects_are_differences_to_the_base() -> None:
    effects = {"base": [-5.0, -6.0, None], "pit": [-3.0, -6.0, -1.0]}
    scores = {
        name: Score(rows("1"), {"side_effects": [{"doc_id": f"d{i}", "logprob": v} for i, v in enumerate(values)]})
        for name, values in effects.items()
    }
    found = findings.side_effects(scores, 200, 0)
    assert list(found) == ["pit"]
    assert (found["pit"]["mean"], found["pit"]["n"]) == (1, 2)  # the third has no value before
    assert findings.side_effects({"pit": scores["pit"]}, 200, 0) == {}


def test_learning() -> None:
    documents = [{"id": "d0", "tokens": 10, "nll": 5.0}, {"id": "d1", "tokens": 30, "nll": 30.0}]
    first = Score([*rows("1000"), *rows("10", set_name="train"), *rows("1111", "retrieval")], {"documents": documents})
    totals = {"k0": {"steps": 100, "tokens": 1000}, "k1": {"steps": 5, "tokens": 50}, "k2": {"steps": 7, "tokens": 70}}
    found = findings.learning({"base": ["k0"], "pit": ["k0", "k1", "k2"]}, {"k1": first}, totals)
    assert found == {
        "base": [{"stage": "k0", "steps": 0, "tokens": 0}],
        "pit": [
            {"stage": "k0", "steps": 0, "tokens": 0},
            {"stage": "k1", "steps": 5, "tokens": 50, "sets": {"test": {"em": 0.25}, "train": {"em": 0.5}}, "document_loss": 0.875},
            {"stage": "k2", "steps": 12, "tokens": 120},
        ],
    }


def test_the_worst_wording_is_not_a_single_questions() -> None:
    """One question of four has a third other wording, which it gets wrong: a column of one, that says nothing of a wording."""
    others = [row(i, em, set_name="test") | {"set": "wordings"} for i, em in [*((n // 2, 1) for n in range(8)), (3, 0)]]
    found = findings.wordings({"pit": Score([*rows("1111"), *others], {})}, 200, 0)["pit"]
    assert [(one["n"], one["mean"]) for one in found["by_wording"]] == [(4, 1), (4, 1), (1, 0)]
    assert (found["worst"]["n"], found["worst"]["mean"], found["all"]["mean"]) == (4, 1, 0.75)


def test_in_other_words_by_hand() -> None:
    """Four questions of two documents; the last has one other wording only."""
    others = [row(i, em, set_name="test") | {"set": "wordings"} for i, em in [(0, 1), (0, 1), (1, 1), (1, 0), (2, 0), (2, 0), (3, 1)]]
    asked_once = Score([*rows("1110"), *others, row(4, 1)], {})
    found = findings.wordings({"pit": asked_once, "base": BASE}, 200, 0)
    assert list(found) == ["pit"]
    pit = found["pit"]
    assert (pit["questions"], pit["own"]["mean"]) == (4, 0.75)  # the fifth has no other wording
    assert [(one["n"], one["mean"]) for one in pit["by_wording"]] == [(4, 0.75), (3, pytest.approx(1 / 3))]
    assert (pit["worst"]["number"], pit["worst"]["n"]) == (2, 3)
    assert pit["all"]["mean"] == 0.25  # the first alone: the second fails once, the third twice, the fourth as trained
    assert pit["minus_own"]["mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4 - 0.75)
    json.dumps(found)
