"""Records → tokens with exact loss spans → a memory-mapped store that every worker reads by item number."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from console import UserError
from data.catalogue import Catalogue
from data.records import Document, Question
from data.templates import document_text, question_prompt, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STORE_FORMAT = 1
_BATCH = 2048  # records encoded at once: bounds memory, keeps the tokenizer's threads busy


def load_tokenizer(path: str, revision: str | None = None, local_only: bool = False) -> "PreTrainedTokenizerFast":
    """A fast tokenizer from a folder or hub id (`local_only`: or its cache); UserError when it is absent, slow, or without an end-of-sequence token."""
    from transformers import AutoTokenizer  # seconds to import: only where tokens are made

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, local_files_only=local_only)
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None
    if not tokenizer.is_fast:
        raise UserError(f"model {path}: needs a fast tokenizer (tokenizer.json): loss spans come from character offsets")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {path}: its tokenizer has no end-of-sequence token, so no answer could ever end")
    return tokenizer


class Encoder:
    """Tokens of documents, questions and exam prompts, all in one place so that exam and training agree.

    Text is encoded as plain text: "</s>" inside a document becomes ordinary tokens, never the control token.
    A tokenizer without a beginning-of-sequence token (Qwen) gets none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # our own copy: the next line changes it
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        assert tokenizer.eos_token_id is not None
        self.eos_id: int = int(tokenizer.eos_token_id)
        self._start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    def prompt(self, question: str) -> list[int]:
        """`<bos>Question: … Answer:`, what the exam shows and training masks."""
        return self._start + self._backend.encode(question_prompt(question), add_special_tokens=False).ids

    def document(self, document: Document) -> list[int]:
        """`<bos>` + text, no `<eos>`."""
        return self._start + self._backend.encode(document_text(document), add_special_tokens=False).ids

    def encode(self, records: list[Document] | list[Question]) -> list[tuple[list[int], int]]:
        """(tokens, index of the first token that carries loss) of each record.

        Documents: every token after the first. Questions: the tokens whose characters reach beyond the prompt, and `<eos>`;
        found by character offsets, because re-encoding the prompt alone may cut tokens elsewhere.
        """
        texts = [question_text(r) if isinstance(r, Question) else document_text(r) for r in records]
        encoded = self._backend.encode_batch(texts, add_special_tokens=False)
        result = []
        for record, encoding in zip(records, encoded, strict=True):
            if isinstance(record, Question):
                ids = self._start + encoding.ids + [self.eos_id]
                prompt_chars = len(question_prompt(record.question))
                first = next((n for n, (_, end) in enumerate(encoding.offsets) if end > prompt_chars), len(encoding.ids))
                result.append((ids, max(1, len(self._start) + first)))
            else:
                result.append((self._start + encoding.ids, 1))
        return result


@dataclass(frozen=True)
class TokenStore:
    """Tokens of all items of a catalogue, in its order; arrays are memory-mapped."""

    tokens: npt.NDArray[np.uint32]  # (all tokens,)
    offsets: npt.NDArray[np.int64]  # (items + 1,): item i is tokens[offsets[i]:offsets[i + 1]]
    loss_start: npt.NDArray[np.int32]  # (items,): within the item
    sha256: str

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def item(self, index: int) -> npt.NDArray[np.uint32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def write_store(folder: Path, catalogue: Catalogue, encoder: Encoder, advance: Callable[[int], None] = lambda n: None) -> TokenStore:
    """Encodes every item of the catalogue into `folder`; calls advance(items) as it goes. Memory does not grow with the corpus.

    A store that is already there for the same records and tokenizer is opened, not made again.
    """
    key = _store_key(catalogue, encoder)
    if (folder / "manifest.json").exists() and json.loads((folder / "manifest.json").read_text())["key"] == key:
        advance(len(catalogue))
        return open_store(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    lengths, loss_start, digest = [], [], hashlib.sha256()
    with (folder / "tokens.bin").open("wb") as file:
        for records in _batches(catalogue):
            for ids, start in encoder.encode(records):
                data = np.asarray(ids, dtype=np.uint32).tobytes()
                file.write(data)
                digest.update(data)
                lengths.append(len(ids))
                loss_start.append(start)
            advance(len(records))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "loss_start.npy", np.asarray(loss_start, dtype=np.int32))
    digest.update(offsets.tobytes() + np.asarray(loss_start, dtype=np.int32).tobytes())
    (folder / "manifest.json").write_text(json.dumps({"key": key, "sha256": digest.hexdigest(), "format": STORE_FORMAT}))
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """The store in `folder`; its arrays stay on disk until an item is read."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return TokenStore(
        tokens=np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r"),
        offsets=np.load(folder / "offsets.npy"),
        loss_start=np.load(folder / "loss_start.npy"),
        sha256=manifest["sha256"],
    )


def _batches(catalogue: Catalogue) -> Iterator[Any]:
    for records in catalogue.records.values():
        rows = iter(records)
        while batch := list(islice(rows, _BATCH)):
            yield batch


def _store_key(catalogue: Catalogue, encoder: Encoder) -> str:
    digest = hashlib.sha256(f"{STORE_FORMAT}".encode())
    digest.update(encoder._backend.to_str().encode())
    digest.update(repr((encoder._start, encoder.eos_id)).encode())
    for kind, records in catalogue.records.items():
        digest.update(kind.encode())
        for record in records:
            digest.update(repr(record).encode())
    return digest.hexdigest()
