"""Records → tokens with exact loss spans → a memory-mapped store that every worker reads by item number."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from console import UserError
from data.records import Document, Question
from data.wording.begins import as_trained, start_ids
from data.wording.chat import ChatEncoder
from data.wording.templates import PLAIN, Wording, document_prefix, document_text, learnt_from, question_prompt, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


def load_tokenizer(path: str, revision: str | None = None, local_only: bool = False) -> "PreTrainedTokenizerFast":
    """A fast tokenizer from a folder or hub id (`local_only`: or its cache); UserError when it is absent, slow, or without an end-of-sequence token.

    A tokenizer's own code is never run: without the explicit False transformers would ask on stdin whether it may.
    """
    from transformers import AutoTokenizer  # seconds to import: only where tokens are made

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, local_files_only=local_only, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of a broken or hostile file, the remedy is the user's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "custom code" in reason:
            reason = "it needs code of its own, which is never run; use a tokenizer that transformers knows (tokenizer.json)"
        raise UserError(f"model {path}: its tokenizer cannot be loaded: {reason}") from None
    if not tokenizer.is_fast:
        raise UserError(f"model {path}: needs a fast tokenizer (tokenizer.json): loss spans come from character offsets")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {path}: its tokenizer has no end-of-sequence token, so no answer could ever end")
    as_trained(tokenizer, Path(path))
    return tokenizer


class Encoder:
    """Tokens of documents, questions and exam prompts, all in one place so that exam and training agree.

    Text is encoded as plain text: "</s>" inside a document becomes ordinary tokens, never the control token.
    Before every text stands what the tokenizer itself puts there (data/wording/begins.py); where that is nothing (Qwen, GPT-2), nothing.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", wording: Wording = PLAIN) -> None:
        from tokenizers import Tokenizer

        self.wording = wording

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # our own copy: the next line changes it
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.no_truncation()
        assert tokenizer.eos_token_id is not None
        self.chat = ChatEncoder(tokenizer, self._backend) if wording.template == "chat" else None
        self.eos_id: int = self.chat.layout.end_id if self.chat else int(tokenizer.eos_token_id)
        """The token that ends an answer; in the wording `chat` the end of turn."""
        self._start = start_ids(tokenizer)
        self._unknown: int | None = tokenizer.unk_token_id

    def prompt(self, question: str) -> list[int]:
        """`<bos>Question: … Answer:`, what the exam shows and training masks."""
        if self.chat:
            return self.chat.prompt(question)
        return self._start + self._backend.encode(question_prompt(question, self.wording.template), add_special_tokens=False).ids

    def starts(self, kind: str) -> int:
        """How many tokens of an item of this kind stand before what a passage may be put in front of."""
        return len(self.start if kind.endswith("questions") else self._start)

    @property
    def start(self) -> list[int]:
        """What every prompt begins with: `<bos>`, where the tokenizer adds one; in `chat` the frame up to the user's text."""
        return self.chat.head if self.chat else list(self._start)

    def prompt_text(self, question: str) -> str:
        """The same for people."""
        return self.chat.prompt_text(question) if self.chat else question_prompt(question, self.wording.template)

    @property
    def control_ids(self) -> list[int]:
        """Tokens of the frame, not of the text."""
        return [self.eos_id, *self._start, *(self.chat.controls.values() if self.chat else [])]

    def before(self, text: str) -> list[int]:
        """A passage that stands before a prompt, and the blank line after it; no `<bos>`."""
        return self._backend.encode(f"{text}\n\n", add_special_tokens=False).ids

    def solved(self, question: Question) -> list[int]:
        """A question with its answer that stands before a prompt, and the blank line after it; no `<bos>`, no `<eos>`.

        In `chat` it stands in the user's turn, worded as `pit`: the frame belongs to the question that is asked.
        """
        return self.before(question_text(question, "pit" if self.chat else self.wording.template))

    def gold(self, question: Question) -> list[int]:
        """The answer's tokens as they are trained, without `<eos>`: those behind `prompt`."""
        if self.chat:
            ids, first = self.encode([question])[0]
            return ids[first:-1]
        encoding = self._backend.encode(question_text(question, self.wording.template), add_special_tokens=False)
        return list(encoding.ids[_first_beyond(encoding, len(question_prompt(question.question, self.wording.template))) :])

    def gold_length(self, question: Question) -> int | None:
        """How many they are; None where the tokenizer has no token for some of the answer, so that no model can write it."""
        gold = self.gold(question)
        return None if self._unknown in gold else len(gold)

    def document(self, document: Document) -> list[int]:
        """`<bos>` + text, no `<eos>`."""
        return self._start + self._backend.encode(document_text(document), add_special_tokens=False).ids

    def encode(self, records: list[Document] | list[Question]) -> list[tuple[list[int], int]]:
        """(tokens, index of the first token that carries loss) of each record."""
        return [(item.ids, item.loss_start) for item in self.encode_all(records)]

    def encode_all(self, records: list[Document] | list[Question]) -> "list[Encoded]":
        """Tokens, loss span and sentences of each record.

        Documents: every token after the first carries loss (with a prefix: after it). Questions: the tokens whose
        characters reach beyond the prompt, and `<eos>`; found by character offsets, because re-encoding the prompt alone may
        cut tokens elsewhere.
        """
        if self.chat and records and isinstance(records[0], Question):
            questions = [record for record in records if isinstance(record, Question)]
            return [Encoded(ids, max(1, first), []) for ids, first in self.chat.questions(questions)]
        if self.wording.passages and records and isinstance(records[0], Document):
            texts = [document_text(record) for record in records if isinstance(record, Document)]
            return [Encoded(self.before(text), 0, []) for text in texts]
        parts = [self._parts(record) for record in records]
        places = self.wording.sentences or any(before for before, _ in parts)
        encode = self._backend.encode_batch if places else self._backend.encode_batch_fast  # the latter keeps no offsets
        encoded = encode([before + after for before, after in parts], add_special_tokens=False)
        result = []
        for record, (before, after), encoding in zip(records, parts, encoded, strict=True):
            first = _first_beyond(encoding, len(before)) if before else 0
            end = [self.eos_id] if isinstance(record, Question) else []
            shift = len(self._start)
            sentences = _sentence_starts(after, len(before), encoding.offsets, first, shift) if self.wording.sentences and not end else []
            result.append(Encoded(self._start + encoding.ids + end, max(1, shift + first), sentences))
        return result

    def _parts(self, record: Document | Question) -> tuple[str, str]:
        """(what is only read, what is learnt)."""
        if isinstance(record, Question):
            text, place = question_text(record, self.wording.template), learnt_from(record.question, self.wording.template)
            return text[:place], text[place:]
        return document_prefix(record, self.wording), document_text(record)


def _first_beyond(encoding: Any, place: int) -> int:
    """The first token whose characters reach beyond `place`.

    Asked for by character, because a list of all offsets costs half as much as the encoding; a space before a word belongs to no token
    in many tokenizers, so the next characters are tried too, and the answer counts if the token before it ends by `place`.
    """
    for character in range(place, place + 3):
        token = encoding.char_to_token(character)
        if token is not None:
            if token == 0 or encoding.token_to_chars(token - 1)[1] <= place:
                return int(token)
            break
    return next((n for n, (_, end) in enumerate(encoding.offsets) if end > place), len(encoding.ids))


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record's tokens."""

    ids: list[int]
    loss_start: int
    """The first token that carries loss."""
    sentences: list[int]
    """Of a document the tokens that begin its sentences; empty unless the wording asks for them."""


def _sentence_starts(text: str, skip: int, offsets: list[tuple[int, int]], first: int, shift: int) -> list[int]:
    """A sentence begins at the first token from the white space after ".", "!" or "?" on; the first one at token `first`."""
    places = [skip + match.end() for match in _SENTENCE_END.finditer(text)]
    starts = np.searchsorted([begin for begin, _ in offsets], places)
    return [shift + first, *(shift + int(n) for n in np.unique(starts) if first < n < len(offsets))]
