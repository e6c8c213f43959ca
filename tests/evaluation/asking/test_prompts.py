"""What stands before a question in each mode, and what is left out where it does not fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import UserError
from data.records import Document, Question
from evaluation.asking.prompts import Found, Look, Reading, answer_third, make_looks, make_prompt, other_answer, swap
from tests.evaluation.test_exam import Letters

OSLO = Question("q0", "Where was Ada born?", ("Oslo",), "d0")
ROME = Question("q1", "Where was Bob born?", ("Rome",), "d1")
YEAR = Question("q2", "When was Bob born?", ("1990",), "d1")
SOURCES = {"d0": Document("d0", "Ada was born in Oslo."), "d1": Document("d1", "Bob came later.")}
HITS = [Found("d1#0", "d1", "Bob came later."), Found("d0#0", "d0", "Ada was born in Oslo.")]


def words(ids: list[int]) -> str:
    assert ids[0] == 1 and 1 not in ids[1:]  # one beginning of the sequence, and it is the first
    return "".join(map(chr, ids[1:]))


def looks(modes: list[str]) -> list[Look]:
    questions = [("test", OSLO), ("test", ROME), ("train", YEAR)]
    return make_looks(questions, modes, [YEAR], SOURCES, {"q0": HITS, "q1": HITS}, k=1)


def said(look: Look) -> str:
    return words(make_prompt(look, Letters(), None).ids)


def test_every_mode_ends_in_the_question_as_it_was_trained() -> None:
    made = looks(["few_shot", "open", "retrieval", "retrieval_5", "conflict"])
    assert [(one.set, one.mode, one.question.id) for one in made] == [
        *[("test", "closed", "q0"), ("test", "closed", "q1"), ("train", "closed", "q2")],
        *[("test", "few_shot", "q0"), ("test", "few_shot", "q1")],
        *[("test", "open", "q0"), ("test", "open", "q1")],
        *[("test", "retrieval", "q0"), ("test", "retrieval", "q1")],
        *[("test", "retrieval_5", "q0"), ("test", "retrieval_5", "q1")],
        ("test", "conflict", "q0"),  # Rome does not stand in d1: nothing to swap
    ]
    by_mode = {one.mode: said(one) for one in made if one.question.id == "q0"}
    ask = "Where was Ada born?"
    assert by_mode == {
        "closed": ask,
        "few_shot": f"When was Bob born? 1990\n{ask}",
        "open": f"Ada was born in Oslo.\n{ask}",
        "retrieval": f"Bob came later.\n{ask}",
        "retrieval_5": f"Bob came later.\nAda was born in Oslo.\n{ask}",
        "conflict": f"Ada was born in Rome.\n{ask}",
    }


@given(st.integers(0, 80), st.lists(st.integers(1, 20), max_size=4))
def test_what_does_not_fit_is_counted(room: int, lengths: list[int]) -> None:
    look = Look("test", "retrieval", OSLO, tuple("x" * n for n in lengths))
    asked, wanted = len(Letters().prompt(OSLO.question)), sum(n + 1 for n in lengths)
    if room < asked:
        with pytest.raises(UserError, match=f"which leave {room} for prompts"):
            make_prompt(look, Letters(), room)
        return
    made = make_prompt(look, Letters(), room)
    assert len(made.ids) == asked + wanted - made.cut <= room
    assert words(made.ids).endswith(OSLO.question)
    assert (made.cut == 0) == (asked + wanted <= room)
    if made.cut:
        with pytest.raises(UserError, match=r"tokens of context, but only \d+ fit .* exam.long_context=cut"):
            make_prompt(look, Letters(), room, "refuse")


def test_the_best_passage_stays_longest() -> None:
    look = Look("test", "retrieval", OSLO, ("first", "second"))
    asked = len(OSLO.question) + 1
    assert words(make_prompt(look, Letters(), asked + 12).ids) == f"first\n{OSLO.question}"  # second has 7 and does not fit beside it
    assert words(make_prompt(look, Letters(), asked + 3).ids) == f"fi\n{OSLO.question}"  # what is cut ends in its blank line, too
    assert words(make_prompt(look, Letters(), asked + 1).ids) == OSLO.question
    shot = Look("test", "few_shot", OSLO, solved=(YEAR, ROME))
    assert words(make_prompt(shot, Letters(), asked + 30).ids) == f"When was Bob born? 1990\n{OSLO.question}"
    assert words(make_prompt(shot, Letters(), asked + 10).ids) == OSLO.question  # never half of a solved question


def test_the_swapped_answer_is_wrong_and_of_the_same_kind() -> None:
    assert other_answer(OSLO, [OSLO, ROME, YEAR]) == "Rome"  # "Where was …", not "When was …"
    assert other_answer(OSLO, [OSLO, Question("x", "Where was Cy born?", ("the OSLO",), "d9")]) is None
    assert other_answer(OSLO, [Question("x", "Where was Ada raised?", ("Bern",), "d0")]) is None  # of the same document
    assert swap("Oslo, oslo and Oslofjord", ["Oslo"], "Rome") == "Rome, Rome and Oslofjord"
    assert swap("Oslo, Norway is cold", ["Oslo", "Oslo, Norway"], "Rome") == "Rome is cold"  # the longest wording first
    assert swap("nothing here", ["Oslo"], "Rome") is None
    assert swap("anything", [" "], "Rome") is None


@pytest.mark.parametrize(
    ("text", "golds", "third"),
    [
        ("Oslo is where Ada lived and then she moved", ["Oslo"], "first"),
        ("Ada lived her life in Oslo then she moved again", ["Oslo"], "middle"),
        ("Ada lived and then she moved to Oslo", ["the Oslo"], "last"),
        ("Oslofjord", ["Oslo"], None),
        ("Ada was here, in Oslo, by Oslo", ["by Oslo", "Ada"], "first"),  # the first of all gold answers
        ("", ["Oslo"], None),
    ],
)
def test_where_the_answer_stands(text: str, golds: list[str], third: str | None) -> None:
    assert answer_third(text, golds) == third


SHOWN = Reading("Be brief.", (("Cy came in 1990.", Question("t0", "When did Cy come?", ("1990",), "e0")),))


def test_what_shows_a_model_how_to_read_stands_before_passages_alone() -> None:
    made = make_looks([("test", OSLO)], ["few_shot", "open", "retrieval"], [YEAR], SOURCES, {"q0": HITS}, k=1, reading=SHOWN)
    by_mode = {one.mode: said(one) for one in made}
    head = "Be brief.\nCy came in 1990.\nWhen did Cy come? 1990\n"
    assert by_mode["open"] == f"{head}Ada was born in Oslo.\n{OSLO.question}"
    assert by_mode["retrieval"] == f"{head}Bob came later.\n{OSLO.question}"
    assert by_mode["closed"] == OSLO.question and not by_mode["few_shot"].startswith("Be brief")


@pytest.mark.parametrize(
    ("spare", "head"), [(200, "Be brief.\nCy came in 1990.\nWhen did Cy come? 1990\n"), (12, "Be brief.\n"), (5, ""), (0, "")]
)
def test_it_gives_way_to_the_passages(spare: int, head: str) -> None:
    look = Look("test", "open", OSLO, ("Ada was born in Oslo.",), reading=SHOWN)
    whole = len(make_prompt(look, Letters(), None).ids)
    bare = len(make_prompt(Look("test", "open", OSLO, ("Ada was born in Oslo.",)), Letters(), None).ids)
    made = make_prompt(look, Letters(), bare + spare)
    assert words(made.ids) == f"{head}Ada was born in Oslo.\n{OSLO.question}" and made.cut == whole - len(made.ids)
