"""One checkpoint sits the exam: its answers, how likely it found the right ones, the loss of the documents."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import Any, Protocol, TypeVar

from data.wording.templates import document_text
from evaluation.asking.prompts import Look, Prompt, answer_third
from evaluation.engines.lengths import neighbours
from evaluation.exam import Exam, Paper
from evaluation.scoring.scores import exact_match, score_answer

_PROMPTS_PER_CALL = 256
_TOKENS_PER_CALL = 2**15
"""Of prompts: few enough to be in the engine's cache still when they are asked the second time."""
_SEQUENCES_PER_CALL = 64


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DocumentLoss:
    id: str
    tokens: int
    """Tokens with a loss: all after the first."""
    nll: float
    """Sum of their negative log-likelihoods, in nats."""


class Answering(Protocol):
    """evaluation.engine.Engine, with a checkpoint open."""

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Any]: ...
    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]: ...


@dataclass(frozen=True)
class Sitting:
    """What one checkpoint did."""

    rows: list[dict[str, Any]]
    """One per look, with its scores."""
    losses: list[DocumentLoss]
    side_effects: list[dict[str, Any]]
    """[{"doc_id", "logprob"}]: of a document's answer after an unrelated question."""


def sit(exam: Exam, paper: Paper, engine: Answering, eos_id: int, advance: Callable[[int], None]) -> Sitting:
    """The open checkpoint's answers, document losses and side effects; calls advance(items) as it goes."""
    short = paper.short or inf
    rows: dict[int, dict[str, Any]] = {}
    looks = enumerate(zip(paper.looks, paper.prompts, paper.texts, paper.golds, strict=True))
    for batch in _calls(neighbours(looks, lambda one: len(one[1][1].ids) + exam.answer_tokens > short), lambda one: len(one[1][1].ids)):
        # First, because vLLM reads its cache of prompts for answers alone: likelihoods fill it. The other way each prompt is computed twice.
        golds = iter(_likelihoods(engine, [(prompt.ids + gold, len(prompt.ids)) for _, (_, prompt, _, gold) in batch if gold]))
        answers = engine.answer([prompt.ids for _, (_, prompt, _, _) in batch], exam.answer_tokens, eos_id)
        for (n, (look, prompt, text, gold)), answer in zip(batch, answers, strict=True):
            rows[n] = _row(look, prompt, text, answer, next(golds) if gold else None, exam)
        advance(len(batch))
    losses: dict[int, DocumentLoss] = {}
    documents = enumerate(zip(exam.documents, paper.windows, strict=True))
    for group in _batches(neighbours(documents, lambda one: any(len(w) > short for w in one[1][1])), _SEQUENCES_PER_CALL):
        scored = iter(_likelihoods(engine, [(window, 1) for _, (_, windows) in group for window in windows]))
        for n, (document, windows) in group:
            nll = -sum(islice(scored, len(windows)))
            losses[n] = DocumentLoss(document.id, sum(len(w) - 1 for w in windows), nll)
        advance(len(group))
    beside = _likelihoods(engine, [(ids, start) for _, ids, start in paper.side_effects])
    effects = [{"doc_id": owner, "logprob": value} for (owner, _, _), value in zip(paper.side_effects, beside, strict=True)]
    return Sitting([rows[n] for n in sorted(rows)], [losses[n] for n in sorted(losses)], effects)


def _likelihoods(engine: Answering, wanted: list[tuple[list[int], int]]) -> list[float]:
    """Log-likelihoods of (sequence, first token that counts), a bounded number at a time."""
    return [
        value
        for batch in _batches(wanted, _SEQUENCES_PER_CALL)
        for value in engine.log_likelihoods([ids for ids, _ in batch], [start for _, start in batch])
    ]


def _row(look: Look, prompt: Prompt, text: str, answer: Any, gold_logprob: float | None, exam: Exam) -> dict[str, Any]:
    question, output = look.question, answer["text"].strip()
    said = output.split("\n", 1)[0].strip()
    document = exam.sources.get(question.doc_id or "") if look.set == "test" else None
    ranks = [rank for rank, hit in enumerate(look.found, 1) if hit.doc_id == question.doc_id]
    return {
        "set": look.set,
        "mode": look.mode,
        "question_id": question.id,
        "doc_id": question.doc_id,
        "prompt": text,
        "answer": said,
        "output": output,
        "gold": list(question.answers),
        **score_answer(said, question.answers, exam.numbers),
        "answer_tokens": len(answer["token_ids"]),
        "finish_reason": answer["finish_reason"],
        "logprob": answer.get("logprob"),
        "gold_logprob": gold_logprob,
        "position": answer_third(document_text(document), question.answers) if document else None,
        "context_cut": prompt.cut,
        "retrieved": [hit.id for hit in look.found],
        "gold_rank": ranks[0] if ranks else None,
        "swapped": look.swapped,
        "follows": exact_match(said, [look.swapped], exam.numbers) if look.swapped else None,
    }


def _calls(looks: Iterable[T], tokens_of: Callable[[T], int]) -> Iterator[list[T]]:
    """In order, as many at once as have _TOKENS_PER_CALL together, one at least."""
    batch: list[T] = []
    tokens = 0
    for look in looks:
        if batch and (len(batch) == _PROMPTS_PER_CALL or tokens + tokens_of(look) > _TOKENS_PER_CALL):
            yield batch
            batch, tokens = [], 0
        batch.append(look)
        tokens += tokens_of(look)
    if batch:
        yield batch


def _batches(items: Any, size: int) -> Iterator[list[Any]]:
    rows = iter(items)
    while batch := list(islice(rows, size)):
        yield batch
