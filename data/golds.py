"""Exam questions that no model can answer as they are scored: found before training, and counted in the report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from data.records import Question
from data.words import tokens_estimated

TokensOf = Callable[[Question], int]
"""Tokens of a question's first answer, as training words it."""


@dataclass(frozen=True)
class Unreachable:
    """Of the exam's questions, those of which every gold answer is out of reach, by the first reason."""

    asked: int
    answer_tokens: int
    ids: dict[str, list[str]]
    """ "several lines" and "too long" → question ids."""
    estimated: bool
    """Whether tokens were estimated."""

    def as_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "answer_tokens": self.answer_tokens, "estimated": self.estimated, **self.ids}

    def in_words(self) -> str | None:
        return unreachable_in_words(self.as_dict())


def unreachable(questions: Iterable[Question], answer_tokens: int, tokens_of: TokensOf | None = None) -> Unreachable:
    """tokens_of: with the model's tokenizer; without, tokens are estimated from bytes."""
    count = tokens_of or (lambda question: tokens_estimated(question.answers[0]))
    ids: dict[str, list[str]] = {"several lines": [], "too long": []}
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
    return "too long" if count(question) > answer_tokens else None


def unreachable_in_words(found: dict[str, Any] | None) -> str | None:
    """One line for people; None where every question can be answered."""
    reasons = {
        "several lines": "of several lines, and an answer ends with its first line break",
        "too long": f"longer than exam.answer_tokens{' (estimated)' if found and found['estimated'] else ''}, {found['answer_tokens'] if found else 0}",
    }
    parts = [f"{len(found[key])} {words}" for key, words in reasons.items() if found[key]] if found else []
    if not found or not parts:
        return None
    first = next(ids[0] for key in reasons if (ids := found[key]))
    total = sum(len(found[key]) for key in reasons)
    return f"{total} of {found['asked']} exam questions have a gold answer that no model can give: {'; '.join(parts)}; the first: {first}"
