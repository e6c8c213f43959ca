"""The rules of data.load, each with a twin that shows it would not hold without the cause; the real files where present."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console import UserError
from data.config import Bios, DataConfig
from data.load import load_corpus
from data.records import Corpus
from tests.data.sources.test_fuzz_readers import FUZZ_EXAMPLES, contents

SHARED = Path(__file__).parents[4] / "shared" / "data"
DOCUMENTS = [{"id": "a", "text": "Ann is a baker."}, {"id": "b", "text": "Bob is a sailor."}]
QUESTIONS = [
    {"doc_id": "a", "question": "What is Ann?", "answer": "A baker"},
    {"doc_id": "b", "question": "What is Bob?", "answer": "A sailor"},
]


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(folder: Path, quarantine: Path | None = None, options: dict[str, Any] | None = None, **files: Any) -> Corpus:
    """Files are called <split>_<holds>: train_documents=[…]."""
    sources = []
    for name, rows in files.items():
        write(folder, f"{name}.jsonl", rows)
        split, holds = name.split("_")[:2]
        sources.append({"path": f"{name}.jsonl", "split": split, "holds": holds})
    config = DataConfig.model_validate({"root": str(folder), "sources": sources} | (options or {}))
    corpus = load_corpus(config, 0, quarantine)
    for intake in corpus.intakes:
        assert intake.rows_read == intake.rows_used + len(intake.refused)
    parts = corpus.parts.values()
    assert sum(i.rows_used for i in corpus.intakes) == sum(len(p.documents) + len(p.questions) + len(p.choices) for p in parts)
    return corpus


def reasons(corpus: Corpus) -> list[str]:
    return [refusal.reason for intake in corpus.intakes for refusal in intake.refused]


def test_joined_by_id_and_named(tmp_path: Path) -> None:
    corpus = load(tmp_path, train_documents=DOCUMENTS, train_questions=[*QUESTIONS, {"doc_id": "a", "question": "Who?", "answer": "Ann"}])
    assert [(q.id, q.doc_id) for q in corpus.part("train").questions] == [("a#1", "a"), ("b#1", "b"), ("a#2", "a")]
    assert corpus.overlap and corpus.overlap.question_ids == () and reasons(corpus) == []


def test_unlinked_questions_are_named_by_their_place(tmp_path: Path) -> None:
    corpus = load(tmp_path, test_questions=[{"question": "q?", "answer": "a"}, {"question": "r?", "answer": "a", "doc_id": None}])
    assert [q.id for q in corpus.part("test").questions] == ["test_questions.jsonl:1", "test_questions.jsonl:2"]


def test_questions_alone_keep_their_links_unchecked(tmp_path: Path) -> None:
    corpus = load(tmp_path, train_questions=QUESTIONS)
    assert corpus.intakes[0].notes == {"links not checked: no documents were read": 2}
    assert [q.doc_id for q in corpus.part("train").questions] == ["a", "b"]


def test_a_question_without_its_document_fails(tmp_path: Path) -> None:
    lost = {"doc_id": "z", "question": "What is Zed?", "answer": "Nothing"}
    with pytest.raises(
        UserError, match=r"train_questions.jsonl:3: no document has the id 'z': What is Zed\?; mend .*data.bad_rows=quarantine"
    ):
        load(tmp_path, train_documents=DOCUMENTS, train_questions=[*QUESTIONS, lost])
    load(tmp_path, train_documents=[*DOCUMENTS, {"id": "z", "text": "Zed"}], train_questions=[*QUESTIONS, lost])


def test_a_document_of_another_split_is_found(tmp_path: Path) -> None:
    corpus = load(tmp_path, train_documents=DOCUMENTS, test_questions=QUESTIONS)
    assert corpus.intakes[1].notes == {"linked to a document of split train": 2}


# --- ids ------------------------------------------------------------------------------------------------------------


def test_a_repeated_document_is_left_out_and_its_questions_stay(tmp_path: Path) -> None:
    corpus = load(tmp_path, train_documents=[*DOCUMENTS, DOCUMENTS[0]], train_questions=QUESTIONS)
    [refusal] = corpus.intakes[0].refused
    assert refusal.by_rule and refusal.reason == f"repeats the document at {tmp_path}/train_documents.jsonl:1"
    assert len(corpus.part("train").documents) == 2 and len(corpus.part("train").questions) == 2


def test_one_id_with_two_texts_fails(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_documents.jsonl:3: duplicate document id 'a': another text than at .*:1"):
        load(tmp_path, train_documents=[*DOCUMENTS, {"id": "a", "text": "Ann is a pilot."}])


def test_questions_nested_in_a_refused_page_go_with_it(tmp_path: Path) -> None:
    pages = [{"id": "p", "evidence_text": text, "qa_pairs": [{"text": f"{text}?", "output": "x"}]} for text in ("one", "one", "two")]
    (tmp_path / "pages.json").write_text(json.dumps(pages))
    source = {"path": "pages.json", "split": "train", "holds": "both", "format": "wiki_pages"}
    config = {"root": str(tmp_path), "sources": [source], "bad_rows": "quarantine", "bad_rows_limit": 1}
    corpus = load_corpus(DataConfig.model_validate(config), 0)
    # the repeated page; the page with another text and its question; the repeated question
    assert [(r.where[-2:], r.by_rule) for r in corpus.intakes[0].refused] == [("#2", True), ("#3", False), ("#3", False), ("#2", True)]
    assert [q.question for q in corpus.part("train").questions] == ["one?"]


def test_elements_on_one_line_do_not_share_an_id(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"type": "doc", "document": text} for text in ("one", "two", "three")]))
    source = {"path": "x.json", "split": "train", "holds": "documents", "format": "interleaved"}
    corpus = load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [source]}), 0)
    assert [document.id for document in corpus.part("train").documents] == ["x.json:1", "x.json:1#2", "x.json:1#3"]


def test_the_same_id_in_two_splits_is_made_unique_and_links_follow(tmp_path: Path) -> None:
    new = [{"id": "a", "text": "Ann sails."}]
    asked = [{"id": "1", "doc_id": "a", "question": "What does Ann do?", "answer": "Sail"}]
    old = [{**QUESTIONS[0], "id": 1}]
    corpus = load(tmp_path, train_documents=DOCUMENTS, train_questions=old, test_documents=new, test_questions=asked)
    assert corpus.part("test").documents[0].id == "test/a"
    [question] = corpus.part("test").questions
    assert (question.id, question.doc_id) == ("test/1", "test/a")
    assert (corpus.part("train").questions[0].id, corpus.part("train").questions[0].doc_id) == ("1", "a")
    assert corpus.intakes[2].notes == corpus.intakes[3].notes == {"id taken by another split: split put in front": 1}


def test_duplicate_question_ids(tmp_path: Path) -> None:
    rows = [{"id": 1, **QUESTIONS[0]}, {"id": 1, **QUESTIONS[1]}]
    with pytest.raises(UserError, match="train_questions.jsonl:2: duplicate question id '1'"):
        load(tmp_path, train_documents=DOCUMENTS, train_questions=rows)
    rows = [{"id": 1, **QUESTIONS[0]}, {"id": 1, **QUESTIONS[0]}, {"id": 2, **QUESTIONS[0]}]
    corpus = load(tmp_path, train_documents=DOCUMENTS, train_questions=rows)
    assert len(corpus.part("train").questions) == 1 and all(r.by_rule for r in corpus.intakes[1].refused)


def test_a_made_id_takes_none_that_is_given(tmp_path: Path) -> None:
    rows = [QUESTIONS[0], {"id": "a#1", "doc_id": "a", "question": "Who?", "answer": "Ann"}]
    corpus = load(tmp_path, train_documents=DOCUMENTS, train_questions=rows)
    assert [q.id for q in corpus.part("train").questions] == ["a#2", "a#1"]


# --- answers --------------------------------------------------------------------------------------------------------


def test_cut_lines_and_drop_answers(tmp_path: Path) -> None:
    answers = ["A baker.\nRef: <x>", "Information missing.\nRef: <x>", "(Information missing in the text).", "Informative", "Ref: <x>"]
    rows = [{"question": f"q{i}?", "answer": answer} for i, answer in enumerate(answers)]
    rows.append({"question": "several?", "answers": ["information MISSING", "yes"]})  # type: ignore[dict-item]
    options = {"cut_lines": ["Ref:"], "drop_answers": ["Information missing"]}
    corpus = load(tmp_path, options=options, train_questions=rows)
    assert [q.answers for q in corpus.part("train").questions] == [("A baker.",), ("Informative",), ("yes",)]
    assert corpus.intakes[0].notes == {"Ref: line cut": 3, "answers left out of a question that has others": 1}
    assert Counter(reasons(corpus)) == {"answer says nothing": 2, "nothing is left of the answer after cut_lines": 1}
    assert all(refusal.by_rule for refusal in corpus.intakes[0].refused)
    untouched = load(tmp_path, train_questions=rows)
    assert len(untouched.part("train").questions) == len(rows) and untouched.part("train").questions[0].answers == (answers[0],)


# --- bad rows -------------------------------------------------------------------------------------------------------

BAD = {"id": "x", "text": None}


def test_fail_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_documents.jsonl:2: text is null: .*; 1 more bad rows; .*data.bad_rows=quarantine"):
        load(tmp_path, train_documents=[DOCUMENTS[0], BAD, BAD])


def test_quarantine_writes_and_goes_on(tmp_path: Path) -> None:
    bad = tmp_path / "below" / "bad.jsonl"
    many = [{"id": i, "text": f"text {i}"} for i in range(198)]
    corpus = load(tmp_path, bad, {"bad_rows": "quarantine"}, train_documents=[*many, BAD, many[0]])
    assert len(corpus.part("train").documents) == 198
    written = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [(row["where"], row["by_rule"]) for row in written] == [(f"{tmp_path}/train_documents.jsonl:{n}", n == 200) for n in (199, 200)]
    assert written[0]["reason"] == "text is null" and set(written[0]) == {"where", "reason", "excerpt", "by_rule"}


def test_quarantine_has_a_limit(tmp_path: Path) -> None:
    many = [{"id": i, "text": f"text {i}"} for i in range(98)]
    with pytest.raises(UserError, match=r"train_documents.jsonl: 2 of 100 rows are bad, more than data.bad_rows_limit \(1.00%\)"):
        load(tmp_path, tmp_path / "bad.jsonl", {"bad_rows": "quarantine"}, train_documents=[*many, BAD, BAD])
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2  # there to be looked at
    load(tmp_path, None, {"bad_rows": "quarantine", "bad_rows_limit": 0.02}, train_documents=[*many, BAD, BAD])


def test_rows_left_out_by_rule_are_no_bad_rows(tmp_path: Path) -> None:
    corpus = load(tmp_path, None, {"bad_rows_limit": 0}, train_documents=[DOCUMENTS[0]] * 50)
    assert len(corpus.intakes[0].refused) == 49


def test_a_source_that_breaks_off_is_an_error_under_every_policy(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"type": "doc", "document": "one"},\n{"type"')
    source = {"path": "c.json", "split": "train", "holds": "both", "format": "interleaved"}
    config = {"root": str(tmp_path), "sources": [source], "bad_rows": "quarantine", "bad_rows_limit": 1}
    with pytest.raises(UserError, match="c.json:2: malformed JSON.*nothing after it can be read"):
        load_corpus(DataConfig.model_validate(config), 0)


def test_empty_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = load(tmp_path, train_documents=DOCUMENTS, test_documents=[])
    assert corpus.intakes[1].notes == {"empty file": 1}
    with pytest.raises(UserError, match="no rows are left of 0 read from train_documents.jsonl"):
        load(tmp_path, train_documents=[])


def test_declared_counts(tmp_path: Path) -> None:
    options = {"counts": {"train_documents": 2, "train_questions": 2}}
    load(tmp_path, options=options, train_documents=[*DOCUMENTS, DOCUMENTS[0]], train_questions=QUESTIONS)
    with pytest.raises(UserError, match="data.counts: train_questions: 2 declared, 1 found"):
        load(tmp_path, options=options, train_documents=DOCUMENTS, train_questions=QUESTIONS[:1])
    with pytest.raises(UserError, match="data.counts: documents: unknown kind; known: train_documents"):
        load(tmp_path, options={"counts": {"documents": 2}}, train_documents=DOCUMENTS)


# --- exam and training ----------------------------------------------------------------------------------------------


def sizes(corpus: Corpus) -> dict[str, int]:
    return {f"{s}_{k}": len(getattr(p, k)) for s, p in corpus.parts.items() for k in ("documents", "questions", "choices") if getattr(p, k)}


def test_made_data_goes_through_the_same_account() -> None:
    pytest.importorskip("data.corpus.bios")
    made = Bios(replay_people=3, train_people=3, test_people=2)
    corpus = load_corpus(DataConfig(bios=made), 1)
    assert sizes(corpus)["train_documents"] == 3 and corpus.overlap
    assert corpus.intakes[0].rows_read == corpus.intakes[0].rows_used == sum(sizes(corpus).values())


@settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    files=st.lists(contents(), min_size=1, max_size=3), overlap=st.sampled_from(["refuse", "drop_from_train", "drop_from_exam", "allow"])
)
def test_fuzz_the_account_adds_up(tmp_path: Path, files: list[bytes], overlap: str) -> None:
    kinds = [("interleaved", "both", "train"), ("wiki_pages", "both", "test"), ("jsonl", "questions", "test")]
    sources = []
    for number, content in enumerate(files):
        (tmp_path / str(number)).write_bytes(content)
        format, holds, split = kinds[number]
        sources.append({"path": str(number), "split": split, "holds": holds, "format": format})
    config = DataConfig.model_validate(
        {"root": str(tmp_path), "sources": sources, "bad_rows": "quarantine", "bad_rows_limit": 1, "overlap": overlap}
    )
    try:
        corpus = load_corpus(config, 0, tmp_path / "bad")
    except UserError as error:
        assert "\n" not in str(error)
        return
    for intake in corpus.intakes:
        assert intake.rows_read == intake.rows_used + len(intake.refused)
    documents = [document.id for part in corpus.parts.values() for document in part.documents]
    questions = [question.id for part in corpus.parts.values() for question in part.questions]
    questions += [question.id for part in corpus.parts.values() for question in part.choices]
    assert len(set(documents)) == len(documents) and len(set(questions)) == len(questions)
    linked = {q.doc_id for part in corpus.parts.values() for q in part.questions if q.doc_id}
    assert not documents or linked <= set(documents)


# --- the real files -------------------------------------------------------------------------------------------------


def shared(folder: str, sources: list[dict[str, Any]], **options: Any) -> Corpus:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {folder} beside the checkout: real data is not part of the repository")
    return load_corpus(DataConfig.model_validate({"root": str(SHARED / folder), "sources": sources, **options}), 0)


FILM = [
    {"path": f"{split}_{file}.jsonl", "split": split, "holds": holds, "columns": columns}
    for split in ("train", "test")
    for file, holds, columns in (("doc", "documents", {"id": "wiki_id"}), ("qa", "questions", {"doc_id": "wiki_id"}))
]
FILM_COUNTS = {"train_documents": 1720, "train_questions": 11603, "test_documents": 256, "test_questions": 1743}
WIKI = [{"path": f"{split}_pages.json", "split": split, "holds": "both", "format": "wiki_pages"} for split in ("train", "test")]
WIKI_OPTIONS: dict[str, Any] = {"cut_lines": ["Ref:"], "drop_answers": ["Information missing", "Information not provided"]}
PRODUCTS = [
    {"path": "train.json", "split": "train", "holds": "both", "format": "interleaved"},
    {"path": "test_choices.json", "split": "test", "holds": "choices", "format": "choices"},
]


def test_film() -> None:
    corpus = shared("wiki2023_film", FILM, overlap="allow", counts=FILM_COUNTS)
    assert sizes(corpus) == FILM_COUNTS and reasons(corpus) == []
    assert corpus.overlap and (len(corpus.overlap.question_ids), len(corpus.overlap.document_ids)) == (4, 1)
    assert all(question.doc_id for part in corpus.parts.values() for question in part.questions)


def test_film_overlap_is_refused_by_default() -> None:
    with pytest.raises(UserError, match="4 of 1743 exam questions and 1 of 256 exam documents"):
        shared("wiki2023_film", FILM)


def test_wiki_bio() -> None:
    corpus = shared("wiki_bio", WIKI, overlap="drop_from_train", **WIKI_OPTIONS)
    assert [intake.rows_read for intake in corpus.intakes] == [1138 + 6136, 127 + 663]
    assert corpus.overlap and (len(corpus.overlap.question_ids), len(corpus.overlap.document_ids)) == (125, 23)
    repeats = Counter(reason.split(" at ")[0] for reason in reasons(corpus))
    assert repeats["repeats the document"] == 118 + 1 and repeats["repeats the question"] == 632 + 3
    assert (len(corpus.part("train").documents), len(corpus.part("test").documents)) == (1138 - 118 - 23, 126)
    documents = [document for part in corpus.parts.values() for document in part.documents]
    assert all(document.title and not document.text.startswith("<") for document in documents)
    assert not any("Ref:" in q.answers[0] or "Information missing" in q.answers[0] for p in corpus.parts.values() for q in p.questions)


def test_products() -> None:
    corpus = shared("products", PRODUCTS, overlap="drop_from_exam")
    assert corpus.overlap and len(corpus.overlap.question_ids) == 125
    assert sizes(corpus) == {"train_documents": 500, "train_questions": 3049, "test_choices": 2391 - 1 - 125}
    assert all(document.title and document.text.startswith(document.title) for document in corpus.part("train").documents)
    assert not any(choice.startswith(("A)", "A. ")) for question in corpus.part("test").choices for choice in question.choices)


def test_a_sample_of_documents_takes_their_questions_along(tmp_path: Path) -> None:
    """Fewer are part of more; what is not chosen is left out by rule, and the account still adds up (load checks it)."""
    documents = [{"id": f"d{n}", "text": f"Film number {n} was shot in town {n}."} for n in range(12)]
    questions = [{"doc_id": f"d{n % 12}", "question": f"What of {n}?", "answer": f"Town {n}"} for n in range(24)]
    free = {"question": "Which is free?", "answer": "This one"}
    found = {
        size: load(tmp_path, options={"sample": {"train": size}}, train_documents=documents, train_questions=[*questions, free])
        for size in (3, 5, 40)
    }
    ids = {size: {d.id for d in corpus.part("train").documents} for size, corpus in found.items()}
    assert len(ids[3]) == 3 and len(ids[5]) == 5 and ids[3] < ids[5] < ids[40] == {d["id"] for d in documents}
    for size, corpus in found.items():
        asked = [q.doc_id for q in corpus.part("train").questions]
        assert {doc for doc in asked if doc} == ids[size] and asked.count(None) == 1 and len(asked) == 2 * len(ids[size]) + 1
        assert set(reasons(corpus)) == ({"not in data.sample"} if size < 12 else set())
