"""The vector store: passages that the embedder reads whole, what is found, and stores that are gone, broken or locked (fault F18)."""

import hashlib
import itertools
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import RunError, UserError
from data.records import Document
from evaluation.asking.passages import cut_passages, token_spans
from evaluation.config import RetrievalConfig
from evaluation.examining.retrieval import Embedder, open_store
from tests.faults.promises import F18

WORDS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "teal"]


class Bag:
    """An embedder that counts words; a token is a word, and it reads five."""

    max_tokens = 5

    def word_offsets(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]

    def passages(self, texts: list[str]) -> list[list[float]]:
        return [[text.split().count(word) + 0.001 for word in WORDS] for text in texts]

    questions = passages


SHORT = RetrievalConfig(overlap_tokens=1)
DOCUMENTS = {"test": [Document(f"d{i}", f"{a} {b} {a}") for i, (a, b) in enumerate(itertools.pairwise(WORDS))]}


def found(folder: Path, documents: dict[str, list[Document]] = DOCUMENTS) -> list[str]:
    return [hit.doc_id for hit in open_store(folder, documents, SHORT, Bag()).find(["green blue green"])[0][:1]]


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(2, 8), st.integers(0, 7))
def test_passages_hold_everything_and_are_short_enough(lengths: list[int], limit: int, overlap: int) -> None:
    text = " ".join(chr(97 + i % 26) * n for i, n in enumerate(lengths))
    offsets = [match.span() for match in re.finditer(r"\S+", text)]
    if overlap >= limit:
        with pytest.raises(UserError, match="must be below"):
            token_spans(text, offsets, limit, overlap)
        return
    spans = token_spans(text, offsets, limit, overlap)
    pieces = [text[begin:end] for begin, end in spans]
    assert all(len(piece.split()) <= limit for piece in pieces)
    covered = set().union(*(range(begin, end) for begin, end in spans)) if spans else set()
    assert covered == set(range(len(text)))
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert len(text[begin:end].split()) <= overlap
    assert len(spans) <= max(1, len(lengths))


def test_a_word_of_many_tokens_is_not_cut_unless_it_is_endless() -> None:
    offsets = [(0, 1), (2, 3), (3, 4), (4, 5), (6, 7)]  # "a bcd e", where bcd are three tokens
    assert [("a bcd e")[b:e].strip() for b, e in token_spans("a bcd e", offsets, 3, 0)] == ["a", "bcd", "e"]
    endless = token_spans("abcdefg", [(i, i + 1) for i in range(7)], 3, 1)
    assert endless == [(0, 3), (3, 6), (6, 7)]


def test_nearest_first_and_whose_it_is(tmp_path: Path) -> None:
    store = open_store(tmp_path, DOCUMENTS, SHORT, Bag())
    hits = store.find(["green blue green", "teal gold"])
    assert [hit.doc_id for hit in hits[0][:1]] == ["d1"] and {hit.doc_id for hit in hits[0][1:3]} == {"d0", "d2"}
    assert hits[0][0].id == "d1#0" and hits[0][0].text == "green blue green"
    assert hits[1][0].doc_id == "d8"
    assert len(hits[0]) == 9  # ten are looked up, nine are there
    assert store.about["documents"] == {"test": 9} and store.about["passages"] == 9


def test_perpetual_passages_are_cut_by_characters_and_the_share_is_told(tmp_path: Path) -> None:
    long = Document("long", " ".join(["red"] * 2000))  # 7,999 characters
    config = RetrievalConfig(chunks="perpetual")
    passages = cut_passages(long, Bag(), config)
    assert [len(p.text) for p in passages] == [4095, 4095, 831]  # from 0, 3,584 and 7,168 on, without outer spaces
    assert all(p.truncated for p in passages)
    assert not any(p.truncated for p in cut_passages(long, Bag(), SHORT))
    store = open_store(tmp_path, {"test": [long, Document("short", "red")]}, config, Bag())
    assert store.about["truncated_share"] == 0.75


def test_a_passage_says_what_it_is_about() -> None:
    long = Document("page", "red green blue white black brown grey pink", title="gold")
    texts = [p.text for p in cut_passages(long, Bag(), SHORT)]
    assert texts == ["gold\nred green blue white", "gold\nwhite black brown grey", "gold\ngrey pink"]
    assert [p.text for p in cut_passages(Document("page", "red gold", title="gold"), Bag(), SHORT)] == ["red gold"]
    assert [p.text for p in cut_passages(Document("page", "red", title="gold gold"), Bag(), SHORT)] == ["red"]  # too long a title


def test_a_store_is_kept_and_another_text_has_another(tmp_path: Path) -> None:
    found(tmp_path)
    before = sorted(tmp_path.iterdir())
    found(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    found(tmp_path, {"test": [*DOCUMENTS["test"], Document("new", "teal")]})
    assert len(sorted(tmp_path.glob("*.json"))) == 2


def folder_of(tmp_path: Path) -> Path:
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    return folder


def many() -> dict[str, list[Document]]:
    """So many that ChromaDB writes its index to files (from 1,000 on)."""
    texts = [" ".join(WORDS[int(c, 16) % 10] for c in hashlib.sha256(str(i).encode()).hexdigest()[:5]) for i in range(1500)]
    return {"test": [*(Document(f"m{i}", text) for i, text in enumerate(texts)), *DOCUMENTS["test"]]}


@F18
@pytest.mark.parametrize("fault", ["deleted", "emptied", "scrambled", "pointer", "index"])
def test_a_broken_store_is_built_anew(tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    documents = many() if fault == "index" else DOCUMENTS
    expected = found(tmp_path, documents)
    folder, database = folder_of(tmp_path), folder_of(tmp_path) / "chroma.sqlite3"
    copy = tmp_path / f"{folder.name.rpartition('-')[0]}-7"  # ChromaDB keeps an open path in memory: break one it has not seen
    folder.rename(copy)
    (pointer,) = tmp_path.glob("*.json")
    pointer.write_text(pointer.read_text().replace(folder.name, copy.name))
    database = copy / "chroma.sqlite3"
    if fault == "deleted":
        database.unlink()
    elif fault == "emptied":
        with sqlite3.connect(database) as connection:
            connection.execute("DELETE FROM embeddings")
    elif fault == "scrambled":
        database.write_bytes(database.read_bytes()[:3000] + bytes(range(256)) * 40)
    elif fault == "pointer":
        pointer.write_text("{")
    else:
        files = [path for path in copy.rglob("*.bin") if path.stat().st_size]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert found(tmp_path, documents) == expected
    assert "built anew" in " ".join(capfd.readouterr().err.split())
    assert folder_of(tmp_path) != copy  # and the broken one is gone
    assert found(tmp_path, documents) == expected
    assert "built anew" not in capfd.readouterr().err


@F18
def test_a_locked_store_is_built_beside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found(tmp_path)
    connection = sqlite3.connect(folder_of(tmp_path) / "chroma.sqlite3", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert found(tmp_path) == ["d1"]
    assert "database is locked: built anew" in " ".join(capfd.readouterr().err.split())
    connection.close()


def test_what_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    class Broken(Bag):
        def passages(self, texts: list[str]) -> list[list[float]]:
            raise RuntimeError("out of memory\nand much more")

    with pytest.raises(RunError, match=r"retrieval store .*\.json: cannot be built: RuntimeError: out of memory$"):
        open_store(tmp_path, DOCUMENTS, SHORT, Broken())
    assert found(tmp_path) == ["d1"]  # and the next try is not in its way


def test_the_packaged_embedder(tmp_path: Path) -> None:
    """The real one: passages as it counts them, and meaning rather than words."""
    embedder: Any = Embedder(RetrievalConfig())
    assert embedder.max_tokens == 254
    long = Document("long", " ".join(f"The {n}th sentence is about unforgettable matters, naïvely." for n in range(120)))
    passages = cut_passages(long, embedder, RetrievalConfig())
    assert len(passages) > 4 and not any(p.truncated for p in passages)
    assert len(embedder._tokenizer(passages[0].text)["input_ids"]) <= 256
    texts = {"test": [Document("cat", "The cat sleeps on the sofa."), Document("bank", "Interest rates rose by half a percent."), long]}
    store = open_store(tmp_path, texts, RetrievalConfig(), embedder)
    assert [hits[0].doc_id for hits in store.find(["Where does the kitten nap?", "What did the central bank do?"])] == ["cat", "bank"]


def test_an_embedder_of_pickles_is_refused(tmp_path: Path) -> None:
    """sentence-transformers would read a part's pytorch_model.bin where there is no safetensors beside it."""
    from evaluation.examining.retrieval import _embedder_folder, _refuse_pickles

    _refuse_pickles(_embedder_folder(RetrievalConfig()))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="exam.retrieval.embedder: .*2_Dense/pytorch_model.bin: pickled weights are never read"):
        Embedder(RetrievalConfig(embedder=str(tmp_path)))
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"x")
    _refuse_pickles(tmp_path)  # the twin: that one is read
