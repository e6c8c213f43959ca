"""Documents cut into passages that an embedder reads whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from console import UserError
from data.records import Document
from data.wording.templates import document_text
from evaluation.config import RetrievalConfig

PERPETUAL_CHARACTERS, PERPETUAL_OVERLAP = 4096, 512


class Reader(Protocol):
    """evaluation.examining.retrieval.Embedder."""

    max_tokens: int

    def word_offsets(self, text: str) -> list[tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    doc_id: str
    text: str
    truncated: bool
    """Longer than the embedder reads."""


def cut_passages(document: Document, embedder: Reader, config: RetrievalConfig) -> list[Passage]:
    """A document's passages, `<document>#<n>`: every character of it stands in at least one. Empty documents have none.

    A passage in which the document's title does not stand begins with it: the third passage of a page says "he", and whom it means
    only the title tells. Titles that fill more than a quarter of what the embedder reads are left out.
    """
    text, title = document_text(document), document.title or ""
    longest = min(embedder.max_tokens, config.passage_tokens or embedder.max_tokens)
    head = len(embedder.word_offsets(title))
    if head > longest // 4:
        title, head = "", 0
    if config.chunks == "perpetual":
        step = PERPETUAL_CHARACTERS - PERPETUAL_OVERLAP
        starts = range(0, max(1, len(text) - PERPETUAL_OVERLAP), step)
        spans = [(start, min(len(text), start + PERPETUAL_CHARACTERS)) for start in starts]
    else:
        spans = token_spans(text, embedder.word_offsets(text), longest - head, config.overlap_tokens)
    pieces = [piece for begin, end in spans if (piece := text[begin:end].strip())]
    headed = [piece if title in piece else f"{title}\n{piece}" for piece in pieces]
    return [
        Passage(f"{document.id}#{n}", document.id, piece, len(embedder.word_offsets(piece)) > embedder.max_tokens)
        for n, piece in enumerate(headed)
    ]


def token_spans(text: str, offsets: Sequence[tuple[int, int]], limit: int, overlap: int) -> list[tuple[int, int]]:
    """Character spans of at most `limit` tokens that overlap by up to `overlap` tokens and begin at the beginning of a word.

    A single word of more than `limit` tokens is cut. Raises UserError for an overlap that leaves no progress.
    """
    if overlap >= limit:
        raise UserError(f"exam.retrieval.overlap_tokens ({overlap}) must be below the {limit} tokens that the embedder reads")
    starts_word = [n == 0 or offsets[n - 1][1] < begin for n, (begin, _) in enumerate(offsets)]
    spans = []
    first = 0
    while first < len(offsets):
        end = min(len(offsets), first + limit)
        while end < len(offsets) and end > first + 1 and not starts_word[end]:
            end -= 1
        if end == first + 1 and end < len(offsets) and not starts_word[end]:
            end = min(len(offsets), first + limit)  # one endless word
        spans.append((0 if first == 0 else offsets[first][0], len(text) if end == len(offsets) else offsets[end][0]))
        if end == len(offsets):
            break
        back = max(first + 1, end - overlap)
        while back < end and not starts_word[back]:
            back += 1
        first = back
    return spans
