"""Exam questions that no model can answer as they are scored: found before training, and counted in the report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from data.ground.words import tokens_estimated
from data.records import Question

TokensOf = Callable[[Question], int | None]
"""Tokens of a question's first answer, as training words it; None where the tokenizer has no token for some of it."""


@dataclass(frozen=True)
class Unreachable:
    """Of the exam's questions, those of which every gold answer is out of reach, by the first reason."""

    asked: int
    answer_tokens: int
    ids: dict[str, list[str]]
    """ "several lines", "no token" and "too long" → question ids."""
    estimated: bool
    """Whether tokens were estimated."""

    def as_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "answer_tokens": self.answer_tokens, "estimated": self.estimated, **self.ids}

    def in_words(self) -> str | None:
        return unreachable_in_words(self.as_dict())


def unreachable(questions: Iterable[Question], answer_tokens: int, tokens_of: TokensOf | None = None) -> Unreachable:
    """tokens_of: with the model's tokenizer; without, tokens are estimated from bytes."""
    count = tokens_of or (lambda question: tokens_estimated(question.answers[0]))
    ids: dict[str, list[str]] = {"several lines": [], "no token": [], "too long": []}
    asked = 0
    for question in questions:
        asked += 1
        reasons = [_fault(replace(question, answers=(gold,)), answer_tokens, count) for gold in question.answers]
        if all(reasons):
            ids[str(reasons[0])].append(question.id)
    return Unreachable(asked, answer_tokens, ids, tokens_of is None)


def _fault(question: Question, answer_tokens: int, count: TokensOf) -> str | None:
    gold = question.answers[0].strip()
    if len(gold.splitlines()) > 1:
        return "several lines"
    tokens = count(question)
    if tokens is None:
        return "no token"
    return "too long" if tokens > answer_tokens else None


def unreachable_in_words(found: dict[str, Any] | None) -> str | None:
    """One line for people; None where every question can be answered."""
    reasons = {
        "several lines": "of several lines, and an answer ends with its first line break",
        "no token": "with characters that the model's tokenizer has no token for",
        "too long": f"longer than exam.answer_tokens{' (estimated)' if found and found['estimated'] else ''}, {found['answer_tokens'] if found else 0}",
    }
    parts = [f"{len(found[key])} {words}" for key, words in reasons.items() if found.get(key)] if found else []
    if not found or not parts:
        return None
    first = next(ids[0] for key in reasons if (ids := found.get(key)))
    total = sum(len(found.get(key, [])) for key in reasons)  # a report of an older version has not all of them
    return f"{total} of {found['asked']} exam questions have a gold answer that no model can give: {'; '.join(parts)}; the first: {first}"
