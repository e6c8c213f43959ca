"""Made biographies: the default world stays as it was; copies and order are apart from people and facts; new people beside sources."""

from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from console import UserError
from data.config import Bios, DataConfig
from data.corpus.bios import make_bios
from data.curriculum.catalogue import catalogue_of
from data.load import load_corpus
from data.records import Corpus

SMALL = Bios(replay_people=5, train_people=20, test_people=7)


def texts_of(corpus: Corpus, person: str) -> list[str]:
    return [d.text for d in corpus.part("train").documents if d.id == person or d.id.startswith(f"{person}-copy-")]


def test_moved_people_move_in_every_copy() -> None:
    plain, moved = (make_bios(Bios(replay_people=0, train_people=3, test_people=2, copies=2, moved=moved), seed=0) for moved in (0, 2))
    for split in ("train", "test"):
        before, after = (corpus.part(split) for corpus in (plain, moved))
        cities = [(a, b) for a, b in zip(before.questions, after.questions, strict=True) if a.answers != b.answers]
        assert len(cities) == 2 and all(a.id.endswith("-city") for a, _ in cities)
        for old, new in cities:
            texts = [
                (a.text, b.text) for a, b in zip(before.documents, after.documents, strict=True) if f"{a.id}-".startswith(f"{old.doc_id}-")
            ]
            assert len(texts) >= 2
            assert all(new.answers[0] in b and old.answers[0] not in b for a, b in texts if old.answers[0] in a)


def test_worlds_made_before_stay() -> None:
    """Written down when "They likes" was mended; before that when there were no copies yet."""
    assert make_bios(SMALL, 3).fingerprint() == "776a32ba1947ea16bea415926081a9f158ae0327abd4c018d14cdaa13e6ba5c6"
    assert make_bios(Bios(), 0).fingerprint() == "af7fcc30ec1146086b9ca15462d6fc4ad6cacd174ca5e3a9e4cd8b3e82ee5541"


def test_they_takes_the_verb_of_the_plural() -> None:
    texts = [d.text for d in make_bios(Bios(replay_people=0, train_people=200), 0).part("train").documents]
    verbs = {sentence.split()[1] for text in texts for sentence in text.split(". ")[1:] if sentence.startswith("They ")}
    assert verbs >= {"were", "come", "hold", "work", "have", "are", "enjoy", "spend", "like", "grew", "joined"}
    assert not verbs & {"was", "comes", "holds", "works", "has", "is", "enjoys", "spends", "likes"}
    assert {text.split()[3] for text in texts} >= {"was", "comes", "holds", "works", "has", "is", "enjoys", "spends", "likes"}


@pytest.mark.parametrize("permute", [True, False])
def test_copies_differ_in_wording_and_not_in_facts(permute: bool) -> None:
    one, five = (make_bios(SMALL.model_copy(update={"copies": n, "permute": permute}), 0) for n in (1, 5))
    assert one.part("train").questions == five.part("train").questions  # the same people, facts and links
    for person in (d.id for d in one.part("train").documents):
        texts = texts_of(five, person)
        assert len(set(texts)) == 5 and texts[0] == texts_of(one, person)[0]
        answers = [q.answers[0] for q in five.part("train").questions if q.doc_id == person]
        orders = [sorted(answers, key=text.index) for text in texts]
        assert all(answer in text for answer in answers for text in texts)
        assert (len({tuple(order) for order in orders}) > 1) == permute
        assert orders[0] == answers or permute
    assert len(catalogue_of(five).ranges["train_documents"]) == 100
    assert len({d.id for split in ("train", "test", "replay") for d in five.part(split).documents}) == 5 * 32


def test_without_permuting_all_have_one_order() -> None:
    corpus = make_bios(SMALL.model_copy(update={"permute": False}), 0)
    for document in corpus.part("train").documents:
        places = [document.text.index(q.answers[0]) for q in corpus.part("train").questions if q.doc_id == document.id]
        assert all(a < b for a, b in pairwise(places))
    crowded = make_bios(SMALL.model_copy(update={"permute": False, "templates": 2, "copies": 20}), 0)  # of 32 there are
    assert all(len(set(texts_of(crowded, f"train-person-{n}"))) == 20 for n in range(20))
    with pytest.raises(ValidationError, match="repeat word for word"):
        Bios(copies=2, templates=1, permute=False)


def with_sources(folder: Path, **changes: object) -> DataConfig:
    (folder / "docs.jsonl").write_text('{"id": "test-person-0", "text": "A film of 2023."}\n')
    (folder / "qa.jsonl").write_text('{"question": "Of which year?", "answer": "2023", "doc_id": "test-person-0"}\n')
    sources = [{"path": "docs.jsonl", "split": "train", "holds": "documents"}, {"path": "qa.jsonl", "split": "train", "holds": "questions"}]
    bios = {"replay_people": 0, "train_people": 0, "test_people": 3}
    return DataConfig.model_validate({"root": str(folder), "sources": sources, "bios": bios, **changes})


def test_options_of_the_test_questions() -> None:
    plain, chosen = make_bios(SMALL, 0), make_bios(SMALL.model_copy(update={"options": 4, "moved": 2}), 0)
    assert [len(chosen.part(split).choices) for split in ("replay", "train", "test")] == [0, 0, 35]
    for question, choice in zip(chosen.part("test").questions, chosen.part("test").choices, strict=True):
        assert (choice.question, choice.doc_id) == (question.question, question.doc_id)
        assert len(set(choice.choices)) == 4 and choice.choices[choice.answer_index] == question.answers[0]  # where they live now
    assert len({choice.answer_index for choice in chosen.part("test").choices}) > 1
    again = make_bios(SMALL.model_copy(update={"options": 4}), 0)
    again.part("test").choices.clear()
    assert again.fingerprint() == plain.fingerprint()  # nothing else changes with them
    with pytest.raises(ValidationError, match="4 options for a question, but an attribute has 3 values"):
        Bios(values=3, options=4)


def test_new_people_beside_sources(tmp_path: Path) -> None:
    corpus = load_corpus(with_sources(tmp_path), 0)
    assert [d.text for d in corpus.part("train").documents] == ["A film of 2023."]
    assert len(corpus.part("test").documents) == 3 and len(corpus.part("test").questions) == 15
    ids = [d.id for split in ("train", "test") for d in corpus.part(split).documents]
    assert len(set(ids)) == 4  # an id of the sources that a made person has too: told apart, links follow
    assert {q.doc_id for q in corpus.part("test").questions} == {d.id for d in corpus.part("test").documents}
    assert [q.doc_id for q in corpus.part("train").questions] == [d.id for d in corpus.part("train").documents]
    catalogue = catalogue_of(corpus)
    assert {kind: len(numbers) for kind, numbers in catalogue.ranges.items() if len(numbers)} == {
        "train_documents": 1,
        "train_questions": 1,
        "test_documents": 3,
    }
    assert load_corpus(with_sources(tmp_path, counts={"test_documents": 3}), 0).fingerprint() == corpus.fingerprint()
    with pytest.raises(UserError, match="test_documents: 4 declared, 3 found"):
        load_corpus(with_sources(tmp_path, counts={"test_documents": 4}), 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bios": {}}, "beside sources new people alone: train_people: 0, replay_people: 0"),
        ({"sources": [{"path": "x.jsonl", "split": "test", "holds": "questions"}]}, "leave out the sources with split: test"),
        ({"bios": None, "sources": []}, "give either data.sources or data.bios"),
    ],
)
def test_other_combinations_are_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        with_sources(tmp_path, **changes)


def test_forms_tell_every_fact_beside_the_name_and_change_nothing_else() -> None:
    plain, told = make_bios(SMALL, 0), make_bios(SMALL.model_copy(update={"forms": 7}), 0)
    assert [part.questions for part in plain.parts.values()] == [part.questions for part in told.parts.values()]
    assert plain.part("train").documents == told.part("train").documents
    test = told.part("test")
    assert [d for d in test.documents if d.quality == 1] == plain.part("test").documents
    asked = {text for q in test.questions for text in (q.question, *q.wordings)}
    for person in plain.part("test").documents:
        forms = [d.text for d in test.documents if d.id.startswith(f"{person.id}-")]
        answers = [q.answers[0] for q in test.questions if q.doc_id == person.id]
        assert len(set(forms)) == 7
        for text in forms:
            sentences = [s for s in text.replace("?", ".").split(".") if any(answer in s for answer in answers)]
            assert len(sentences) == 5 and all(str(person.title) in s for s in sentences)
            assert not any(question in text for question in asked)
    with pytest.raises(ValidationError, match="forms tell the facts that moved would change"):
        Bios(forms=1, moved=1)
