"""What stands before questions while they are trained: by share, found, another, false; no model."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from console import UserError
from data.config import Stage
from data.curriculum.arms import compile_arms
from data.curriculum.catalogue import Catalogue
from data.curriculum.plan import compile_plan
from data.records import Question
from data.rows.passages import other_answers
from data.rows.token_store import TokenStore
from data.tokens import Encoder
from tests.data.rows.test_lessons import items, made, rows_of, teaching  # noqa: F401  (made: a fixture)

Made = tuple[Catalogue, TokenStore, Encoder]
SHARES = {"document": 0.3, "retrieved": 0.1, "distracting": 0.2, "conflicting": 0.25}


def stage(shares: dict[str, float], epochs: int = 1) -> Stage:
    return Stage.model_validate(
        {"mix": {"train_questions": 1}, "epochs": epochs, "batch_items": 12, "rate": 1e-3, "passages": shares or None}
    )


def seen(shares: dict[str, float], made: Made, folder: Path, world_size: int = 1, epochs: int = 1) -> list[tuple[str, tuple[int, ...]]]:  # noqa: F811
    """(what stands before a question, its text without that) of every question that is trained."""
    catalogue, _, encoder = made
    documents = {tuple(encoder.before(document.text)): document.id for document in catalogue.records["train_documents"]}  # type: ignore[union-attr]
    questions = {tuple(encoder.encode([question])[0][0]): question for question in catalogue.records["train_questions"]}  # type: ignore[list-item]
    found, start = [], len(encoder.start)
    for one in items(rows_of(stage(shares, epochs), made, folder, world_size)):
        ids = one["input_ids"].tolist()
        alone = next(text for text in questions if tuple(ids[len(ids) - len(text) + start :]) == text[start:])
        question, passage = questions[alone], tuple(ids[start : len(ids) - len(alone) + start])
        gold = len(encoder.gold(question)) + 1  # type: ignore[arg-type]
        assert (one["loss_weight"][-gold:] > 0).all() and not one["loss_weight"][:-gold].any(), "what is read is not learnt"
        kind = "" if not passage else {question.doc_id: "own"}.get(documents.get(passage), "another") if passage in documents else "false"  # type: ignore[union-attr]
        found.append((kind, passage))
    return found


def test_each_kind_has_its_share(made: Made, tmp_path: Path) -> None:  # noqa: F811
    texts = seen(SHARES, made, tmp_path, epochs=10)
    assert len(texts) == 400
    number = Counter(kind for kind, _ in texts)
    # Made people's questions name them, so that what is found is their own document: 0.3 + 0.1. Bounds: three and a half standard deviations.
    for kind, share in (("own", 0.4), ("another", 0.2), ("false", 0.25), ("", 0.15)):
        assert abs(number[kind] / 400 - share) < 3.5 * np.sqrt(share * (1 - share) / 400), number
    assert len({text for kind, text in texts if kind == "another"}) == 8, "another document is drawn anew"
    assert Counter(seen(SHARES, made, tmp_path, 3, 10)) == Counter(texts), "for three ranks as for one"
    assert {kind for kind, _ in seen({}, made, tmp_path)} == {""}  # the twin


def test_a_false_passage_is_the_own_document_with_another_answer(made: Made, tmp_path: Path) -> None:  # noqa: F811
    catalogue, store, _ = made
    beside = teaching(made, tmp_path).beside(stage({"conflicting": 1}), compile_plan(stage({}), catalogue, 0), store, "start")
    assert beside.passages
    texts, of_id = beside.passages.opened(), {document.id: document.text for document in catalogue.records["train_documents"]}  # type: ignore[union-attr]
    from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer

    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    questions = catalogue.records["train_questions"]
    answers = other_answers(list(questions))  # type: ignore[arg-type]
    for number, question, other in zip(catalogue.ranges["train_questions"], questions, answers, strict=True):
        assert isinstance(question, Question) and other and other not in question.answers
        said = tokenizer.decode(texts.before(number, beside.passages.shares, np.random.default_rng(0)), skip_special_tokens=True)
        assert other in said and said.strip() == of_id[question.doc_id].replace(question.answers[0], other).strip()  # type: ignore[index]


def test_the_other_answer_is_of_the_question_that_begins_most_alike() -> None:
    def asked(name: str, text: str, answer: str, document: str | None = None) -> Question:
        return Question(name, text, (answer,), document)

    rows = [
        asked("a", "Where was Ada born?", "Oslo", "ada"), asked("b", "Where was Bo born?", "Rome", "bo"), asked("c", "When was Bo born?", "1990", "bo"),
        asked("d", "Where was Ada raised?", "Bern", "ada"), asked("e", "Where was Cy born?", "the Oslo", "cy"),
    ]  # fmt: skip
    assert other_answers(rows)[0] in ("Rome", "the Oslo") and other_answers(rows)[2] in ("Oslo", "Bern", "the Oslo")
    assert other_answers([rows[0], rows[3]]) == [None, None]  # of one document
    assert other_answers([rows[0], asked("f", "Where was Di born?", "OSLO!", "di")]) == [None, None]  # the same answer
    assert other_answers([]) == []


@pytest.mark.parametrize(
    ("shares", "reason"),
    [({"document": 0.7, "distracting": 0.4}, "at most 1"), ({"document": 0}, "more than 0"), ({"own": 0.1}, "own")],
)
def test_shares_that_are_none(shares: dict[str, float], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        stage(shares)


def test_a_long_document_that_could_be_drawn_is_refused(made: Made, tmp_path: Path) -> None:  # noqa: F811
    catalogue, store, _ = made
    for shares in ({"distracting": 0.1}, {"conflicting": 0.1}, {"retrieved": 0.1}):
        with pytest.raises(UserError, match="passages: train_questions/.* has up to .* tokens behind a passage, and a row .* hold 45"):
            teaching(made, tmp_path, longest=45).beside(stage(shares), compile_plan(stage({}), catalogue, 0), store, "start")


def test_keys_follow_what_stands_before(made: Made, tmp_path: Path) -> None:  # noqa: F811
    catalogue, store, _ = made

    def identity(shares: dict[str, float]) -> str:
        return teaching(made, tmp_path).beside(stage(shares), compile_plan(stage({}), catalogue, 0), store, "start").identities["passages"]

    kinds = [identity({name: 0.5}) for name in SHARES]
    assert (
        kinds[0] == identity({"document": 0.25}) == kinds[2]
    )  # the share is in the stage's own key; another document is any of those there are
    assert len(set(kinds)) == 3


def test_stages_that_need_the_same_passages_share_them(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    same, plan = teaching(made, tmp_path), compile_plan(stage({}), made[0], 0)
    found = [
        same.beside(stage(shares), plan, made[1], "start").passages
        for shares in ({"retrieved": 0.5}, {"retrieved": 0.2}, {"conflicting": 0.5})
    ]
    assert (
        [one and one.folder for one in found[:2]] == 2 * [found[0] and found[0].folder] and found[2] and found[2].folder != found[0].folder
    )  # type: ignore[union-attr]
    assert capsys.readouterr().err.count("train questions their own document is found") == 1, "looked for once"


def test_questions_that_never_stand_alone_are_told(made: Made, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    compile_arms({"base": [], "arm": [stage({"document": 0.6, "retrieved": 0.4})]}, made[0], 0)
    assert "warning: arms.arm.stages.0: passages: every question stands behind a document with its answer" in capsys.readouterr().err
    compile_arms({"base": [], "arm": [stage({"document": 0.6, "distracting": 0.4})]}, made[0], 0)
    assert "warning" not in capsys.readouterr().err


def test_what_an_anchor_holds_stands_alone(made: Made, tmp_path: Path) -> None:  # noqa: F811
    """Its start has read it so. Without the anchor (the twin) replay questions stand behind their documents too."""
    mix = {"train_questions": 1, "replay_questions": 1}
    settings = {"mix": mix, "epochs": 1, "batch_items": 12, "rate": 1e-3, "passages": {"document": 1}}
    long = [
        sum(len(one["input_ids"]) > 40 for one in items(rows_of(Stage.model_validate({**settings, **anchor}), made, tmp_path)))
        for anchor in ({"anchor": {}}, {})
    ]
    assert long == [40, 40 + 30], "five questions of each of eight people, and of six"


def test_a_folder_that_was_half_deleted_is_written_again(made: Made, tmp_path: Path) -> None:  # noqa: F811
    catalogue, store, _ = made
    asked = stage({"document": 1})
    plan = compile_plan(asked, catalogue, 0)
    before = teaching(made, tmp_path).beside(asked, plan, store, "start")
    assert before.passages
    (Path(before.passages.folder) / "siblings.npy").unlink()
    after = teaching(made, tmp_path).beside(asked, plan, store, "start")
    assert after.identities == before.identities and (Path(before.passages.folder) / "siblings.npy").exists()


def test_an_anchors_questions_need_no_room_for_passages(made: Made, tmp_path: Path) -> None:  # noqa: F811
    catalogue, store, _ = made
    mixed = {
        "mix": {"train_questions": 1, "replay_questions": 1},
        "epochs": 1,
        "batch_items": 12,
        "rate": 1e-3,
        "passages": {"document": 1},
    }
    lengths = {}
    for anchored in (True, False):
        asked = Stage.model_validate({**mixed, **({"anchor": {}} if anchored else {})})
        found = teaching(made, tmp_path / str(anchored)).beside(asked, compile_plan(asked, catalogue, 0), store, "start").lengths
        assert found is not None
        lengths[anchored] = found[catalogue.ranges["replay_questions"].start : catalogue.ranges["replay_questions"].stop]
    alone = store.lengths[catalogue.ranges["replay_questions"].start : catalogue.ranges["replay_questions"].stop]
    assert np.array_equal(lengths[True], alone) and (lengths[False] > alone).all()
    with pytest.raises(ValidationError, match="replay questions that an anchor holds stand alone"):
        Stage.model_validate({**mixed, "mix": {"replay_questions": 1}, "anchor": {}})
