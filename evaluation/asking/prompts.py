"""How a question is asked in each mode: what stands before it, and what of that fits the model.

The question itself always keeps the wording and the very tokens of training ("Question: … Answer:"). Before it stand, each
followed by a blank line:

    closed      nothing
    few_shot    solved train questions in the same wording, the same ones for every question
    open        its own document
    retrieval   the passages that the vector store found for it, best first
    conflict    its own document, in which another answer stands in the place of the right one

Where `exam.reading` says so, a line of what to do and train questions that are solved with their own document at hand stand before the passages: small models
learn from them how to read.

What does not fit the model's positions is left out by one rule: what stands before the passages, then whole pieces from the last on, then the end of
the first (a solved question is never cut in two); how many tokens that were is kept with each answer.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from console import UserError
from data.ground.words import swap, words
from data.records import Document, Question
from data.wording.templates import document_text
from evaluation.scoring.scores import normalise


class Tokens(Protocol):
    """data.tokens.Encoder."""

    eos_id: int

    @property
    def start(self) -> list[int]: ...
    def prompt(self, question: str) -> list[int]: ...
    def prompt_text(self, question: str) -> str: ...
    def before(self, text: str) -> list[int]: ...
    def solved(self, question: Question) -> list[int]: ...
    def gold(self, question: Question) -> list[int]: ...
    def document(self, document: Document) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Found:
    """One passage that the store found for a question."""

    id: str
    doc_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model is shown to read: the same before the passages of every question."""

    lead: str = ""
    solved: tuple[tuple[str, Question], ...] = ()
    """(a train document, a question on it)."""

    def __bool__(self) -> bool:
        return bool(self.lead or self.solved)


@dataclass(frozen=True, slots=True)
class Look:
    """One question in one mode, before it is tokenised."""

    set: str
    mode: str
    question: Question
    passages: tuple[str, ...] = ()
    solved: tuple[Question, ...] = ()
    found: tuple[Found, ...] = ()
    """All that were looked up; the first of them are `passages`."""
    swapped: str | None = None
    """The wrong answer that stands in the document (`conflict`)."""
    reading: "Reading | None" = None
    """What stands before the passages."""


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: list[int]
    cut: int = 0
    """Tokens of context that did not fit."""


def make_prompt(look: Look, tokens: Tokens, room: int | None, policy: str = "cut") -> Prompt:
    """The one place where prompts are made. `room`: the most tokens that a prompt may have (None: any number).

    Raises UserError where the question alone does not fit, or where context has to be cut under the policy `refuse`.
    """
    asked = tokens.prompt(look.question.question)
    if room is not None and len(asked) > room:
        raise UserError(
            f"question {look.question.id}: its prompt of {len(asked)} tokens and exam.answer_tokens exceed the model's positions, "
            f"which leave {room} for prompts; lower exam.answer_tokens or leave the question out"
        )
    pieces = [tokens.solved(question) for question in look.solved] or [tokens.before(text) for text in look.passages]
    heads = _heads(look.reading, tokens) if look.reading and look.passages else []
    wanted = sum(map(len, [*heads, *pieces]))
    left = wanted if room is None else room - len(asked)
    kept: list[int] = []
    for piece in pieces:
        if len(kept) + len(piece) > left:
            if not kept and not look.solved:
                line = tokens.before("")  # the blank line that ends it
                kept = piece[: left - len(line)] + line if left > len(line) else []
            break
        kept = kept + piece
    shown: list[int] = []
    for head in heads:
        if len(shown) + len(kept) + len(head) <= left:
            shown = shown + head
    kept = shown + kept
    if len(kept) < wanted and policy == "refuse":
        raise UserError(
            f"question {look.question.id}: {wanted} tokens of context, but only {left} fit the model's positions; "
            "set exam.long_context=cut, or a smaller exam.retrieval.k"
        )
    start = tokens.start
    assert asked[: len(start)] == start
    return Prompt(start + kept + asked[len(start) :], wanted - len(kept))


def _heads(reading: Reading, tokens: Tokens) -> list[list[int]]:
    solved = [tokens.before(text) + tokens.solved(question) for text, question in reading.solved]
    return [tokens.before(reading.lead), *solved] if reading.lead else solved


def make_looks(
    questions: Sequence[tuple[str, Question]],
    modes: Sequence[str],
    exemplars: Sequence[Question],
    sources: Mapping[str, Document],
    found: Mapping[str, Sequence[Found]],
    k: int,
    reading: Reading | None = None,
) -> list[Look]:
    """All questions closed, then the test questions in every other mode. A mode that means nothing for a question leaves it out:
    `open` and `conflict` need its document, `conflict` also the answer in it, word for word.

    `found`: by question id. `retrieval_5` is retrieval with five passages instead of `k`.
    """
    looks = [Look(name, "closed", question) for name, question in questions]
    test = [question for name, question in questions if name == "test"]
    for mode in modes:
        for question in test:
            document = sources.get(question.doc_id or "")
            if mode == "few_shot":
                looks.append(Look("test", mode, question, solved=tuple(exemplars)))
            elif mode == "open" and document is not None:
                looks.append(Look("test", mode, question, (document_text(document),), reading=reading))
            elif mode.startswith("retrieval"):
                depth = int(mode.partition("_")[2] or k)
                hits = tuple(found[question.id])
                looks.append(Look("test", mode, question, tuple(hit.text for hit in hits[:depth]), found=hits, reading=reading))
            elif mode == "conflict" and document is not None:
                other = other_answer(question, test)
                text = swap(document_text(document), question.answers, other) if other else None
                if text is not None:
                    looks.append(Look("test", mode, question, (text,), swapped=other, reading=reading))
    return looks


def other_answer(question: Question, others: Sequence[Question]) -> str | None:
    """A wrong answer of the right kind: that of a question on another document that begins with the same words.

    The most common first words count, the choice among equals is by hash; None where every answer is the same.
    """
    right = {normalise(gold) for gold in question.answers}
    words = _words(question)
    best: tuple[int, bytes, str] | None = None
    for other in others:
        key = _key(other)
        if key in right or not key or (other.doc_id == question.doc_id and other.doc_id is not None):
            continue
        alike = next((n for n, (a, b) in enumerate(zip(words, _words(other), strict=False)) if a != b), len(words))
        if best is None or alike >= best[0]:
            rank = (alike, hashlib.sha256(f"{question.id}:{other.id}".encode()).digest(), other.answers[0])
            best = max(best, rank) if best else rank
    return best[2] if best else None


@cache
def _words(question: Question) -> list[str]:
    return words(question.question)


@cache
def _key(question: Question) -> str:
    return normalise(question.answers[0])


def answer_third(text: str, golds: Sequence[str]) -> str | None:
    """Where in a document its answer stands first: "first", "middle" or "last" third; None where it does not, word for word."""
    said = normalise(text)
    places = [place for gold in golds if (key := normalise(gold)) and (place := f" {said} ".find(f" {key} ")) >= 0]
    if not places:
        return None
    return ("first", "middle", "last")[min(2, 3 * min(places) // max(1, len(said)))]
