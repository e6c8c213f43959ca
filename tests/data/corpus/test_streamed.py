"""`stream: true`: the same account, ids, tokens and plans as with all records held, and memory that does not grow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from console import UserError
from data.config import DataConfig, Stage
from data.curriculum.catalogue import catalogue_of
from data.curriculum.plan import compile_plan, coverage
from data.load import load_corpus
from data.records import Corpus
from data.rows.token_store import write_store
from data.tokens import Encoder
from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
ARTICLES: list[Any] = [
    {"id": f"a{n}", "text": " ".join(WORDS[n % 7 : n % 7 + 4] * (1 + n % 3)) + f" {n}.", "title": f"T{n}"} for n in range(40)
]
DIRTY: list[Any] = [
    *ARTICLES[:10],
    {"id": "a3", "text": ARTICLES[3]["text"], "title": "again"},  # repeats word for word
    {"id": "a4", "text": "Another text under the same id."},
    {"id": "empty", "text": "  "},
    {"text": "No id."},
    *ARTICLES[10:],
    {"id": "a3", "text": ARTICLES[3]["text"]},
]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(root: Path, stream: bool, split: str = "train", more: list[dict[str, Any]] | None = None, **settings: Any) -> DataConfig:
    sources = [{"path": "articles.jsonl", "split": split, "holds": "documents", "stream": stream}, *(more or [])]
    return DataConfig.model_validate({"root": str(root), "sources": sources, **settings})


def loaded(root: Path, stream: bool, **settings: Any) -> Corpus:
    corpus = load_corpus(config(root, stream, **settings), 0)
    part = corpus.part(settings.get("split", "train"))
    assert (part.streamed is not None) == stream and bool(part.documents) != stream
    return corpus


def account(corpus: Corpus) -> list[Any]:
    return sorted(
        (i.source, i.rows_read, i.rows_used, sorted((r.where, r.reason, r.excerpt, r.by_rule) for r in i.refused), sorted(i.notes.items()))
        for i in corpus.intakes
    )


def both(root: Path, **settings: Any) -> tuple[Corpus, Corpus]:
    return loaded(root, False, **settings), loaded(root, True, **settings)


def test_the_same_account_of_bad_and_repeated_rows(tmp_path: Path) -> None:
    written(tmp_path / "articles.jsonl", DIRTY)
    held, streamed = both(tmp_path, bad_rows="quarantine", bad_rows_limit=0.1)
    assert account(held) == account(streamed)
    intake = streamed.intakes[0]
    assert (intake.rows_read, intake.rows_used, len(intake.refused)) == (45, 41, 4)
    assert list(streamed.part("train").all_documents()) == held.part("train").documents
    assert list(streamed.part("train").document_ids()) == [d.id for d in held.part("train").documents]
    with pytest.raises(UserError) as of_held:
        loaded(tmp_path, False)
    with pytest.raises(UserError, match="articles.jsonl:13: text is empty") as of_streamed:
        loaded(tmp_path, True)
    assert ("more bad rows" in str(of_held.value)) and "1 more bad rows" in str(of_streamed.value)


def test_the_same_tokens_and_plan(tmp_path: Path) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    stage = Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 2, "batch_tokens": 60, "rate": 1e-3})
    found = []
    for name, corpus in zip(("held", "streamed"), both(tmp_path), strict=True):
        catalogue = catalogue_of(corpus)
        encoder = Encoder(make_tokenizer(texts_for_tokenizer(catalogue.records), 400))
        store = write_store(tmp_path / name, catalogue, encoder)
        plan = compile_plan(stage, catalogue, 0, store.lengths)
        assert coverage(plan, catalogue)["train_documents"] == {"items": 40, "of": 40, "least": 2, "most": 2}
        found.append((store.sha256, plan.sha256, list(catalogue.ids), catalogue.ids[39], catalogue.digests.tolist()))
    assert found[0] == found[1]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "articles.jsonl", ARTICLES)
    documents = loaded(tmp_path, True).part("train").streamed
    assert documents is not None and len(list(documents)) == 40
    before = documents.sha256
    written(path, [*ARTICLES[:20], {**ARTICLES[20], "text": "Mended."}, *ARTICLES[21:]])
    with pytest.raises(UserError, match="changed while it was read"):
        list(documents)
    written(path, ARTICLES[:-1])
    with pytest.raises(UserError, match="40 good rows, then 39"):
        list(documents)
    changed = loaded(tmp_path, True).part("train").streamed
    assert changed is not None and changed.sha256 != before  # so is the store made anew


QUESTIONS = [
    {"id": "q1", "question": "What is 3?", "answer": "three", "doc_id": "a3"},
    {"id": "q2", "question": "What is none?", "answer": "none"},
]


def test_questions_find_their_streamed_document(tmp_path: Path) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    written(tmp_path / "qa.jsonl", QUESTIONS)
    more = [{"path": "qa.jsonl", "split": "train", "holds": "questions"}]
    held, streamed = (catalogue_of(corpus) for corpus in both(tmp_path, more=more))
    assert np.array_equal(held.document_of, streamed.document_of)
    assert streamed.ids[int(streamed.document_of[40])] == "train_documents/a3" and streamed.document_of[41] == -1
    written(tmp_path / "qa.jsonl", [{**QUESTIONS[0], "doc_id": "nowhere"}])
    for stream in (False, True):
        with pytest.raises(UserError, match="no document has the id 'nowhere'"):
            loaded(tmp_path, stream, more=more)


def test_an_id_of_another_split_gets_the_split_in_front(tmp_path: Path) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    written(tmp_path / "exam.jsonl", [{"id": "a5", "text": "The exam's own."}])
    written(tmp_path / "old.jsonl", [{"id": "a6", "text": "Old."}, {"id": "train/a5", "text": "Old too."}])
    exam = {"path": "exam.jsonl", "split": "test", "holds": "documents"}
    old = {"path": "old.jsonl", "split": "replay", "holds": "documents", "stream": True}
    corpus = loaded(tmp_path, True, more=[exam, old])
    assert [d.id for d in corpus.part("test").documents] == ["a5"]
    assert [d.id for d in corpus.part("train").all_documents()][4:7] == ["a4", "train/a5", "a6"]
    assert list(corpus.part("replay").document_ids()) == ["replay/a6", "replay/train/a5"]  # train has a train/a5 by now
    ids = [f"{split}:{i}" for split in ("train", "replay", "test") for i in corpus.part(split).document_ids()]  # type: ignore[arg-type]
    assert len({i.split(":", 1)[1] for i in ids}) == len(ids) == 43


@pytest.mark.parametrize("policy", ["drop_from_train", "drop_from_exam", "allow"])
def test_overlap_with_the_exam_is_found(tmp_path: Path, policy: str) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    written(tmp_path / "exam.jsonl", [{"id": "e1", "text": ARTICLES[7]["text"].upper()}, {"id": "e2", "text": "Only in the exam."}])
    written(tmp_path / "qa.jsonl", [{"id": "q", "question": "What is 7?", "answer": "seven", "doc_id": "e1"}])
    exam = [
        {"path": "exam.jsonl", "split": "test", "holds": "documents"},
        {"path": "qa.jsonl", "split": "test", "holds": "questions"},
    ]
    held, streamed = both(tmp_path, more=exam, overlap=policy)
    assert held.overlap == streamed.overlap and streamed.overlap is not None and streamed.overlap.document_ids == ("e1",)
    assert account(held) == account(streamed)
    assert list(streamed.part("train").all_documents()) == held.part("train").documents
    assert len(streamed.part("test").questions) == (0 if policy == "drop_from_exam" else 1)
    with pytest.raises(UserError, match=r"1 of 2 exam documents also stand in training; the first: .*exam.jsonl:1 = .*articles.jsonl:8"):
        loaded(tmp_path, True, more=exam)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"holds": "questions"}, "stream: true is for documents"),
        ({"split": "test"}, "stream: true is for documents of train or replay"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path: Path, source: dict[str, str], message: str) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    settings = {"path": "articles.jsonl", "split": "train", "holds": "documents", "stream": True, **source}
    with pytest.raises(UserError, match=message):
        load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [settings]}), 0)


def test_a_split_is_streamed_whole(tmp_path: Path) -> None:
    written(tmp_path / "articles.jsonl", ARTICLES)
    written(tmp_path / "more.jsonl", [{"id": "m", "text": "More."}])
    with pytest.raises(UserError, match="more.jsonl: split train has documents with `stream: true` and without"):
        loaded(tmp_path, True, more=[{"path": "more.jsonl", "split": "train", "holds": "documents"}])
    both_streamed = loaded(tmp_path, True, more=[{"path": "more.jsonl", "split": "train", "holds": "documents", "stream": True}])
    assert [i.rows_used for i in both_streamed.intakes] == [40, 1] and len(both_streamed.part("train").all_documents()) == 41


def test_a_dataset_folder_streams_too(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ARTICLES).save_to_disk(str(tmp_path / "news"))
    for stream in (False, True):
        source = {"path": "news", "split": "train", "holds": "documents", "format": "huggingface", "stream": stream}
        corpus = load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [source]}), 0)
        assert [d.id for d in corpus.part("train").all_documents()] == [a["id"] for a in ARTICLES]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Peak above the imports, 1 against 6 million words; the twin holds its records and must grow. 20 %: allocators and batches vary by a few."""
    from benchmarks.corpus_memory import growth_of, measure

    sizes = (1, 6)
    streamed, held = ([measure(tmp_path, size, stream, timeout_s=120) for size in sizes] for stream in (True, False))
    assert [(one["plan"], one["tokens_sha256"]) for one in streamed] == [(one["plan"], one["tokens_sha256"]) for one in held]
    assert growth_of(*streamed) < 0.2 < growth_of(*held), (streamed, held)
