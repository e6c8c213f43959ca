"""A stage compiled: for each optimiser step the ordered list of items, nothing else. Pure; independent of workers."""

import hashlib
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from console import UserError
from data.catalogue import Catalogue
from data.config import Stage

Items = npt.NDArray[np.int64]
_LINKED = ("questions_first", "documents_first", "questions_grouped", "documents_grouped")


@dataclass(frozen=True)
class Plan:
    """items[starts[s]:starts[s + 1]] are the items of step s."""

    items: Items  # (all occurrences,)
    starts: Items  # (steps + 1,)
    sha256: str

    @property
    def num_steps(self) -> int:
        return len(self.starts) - 1

    def step(self, number: int) -> Items:
        return self.items[self.starts[number] : self.starts[number + 1]]

    def save(self, path: Path) -> None:
        np.savez(path, items=self.items, starts=self.starts, sha256=np.array(self.sha256))


def load_plan(path: Path) -> Plan:
    """A plan written by Plan.save; nothing pickled is read."""
    with np.load(path, allow_pickle=False) as arrays:
        return Plan(arrays["items"], arrays["starts"], str(arrays["sha256"]))


def compile_plan(stage: Stage, catalogue: Catalogue, seed: int) -> Plan:
    """The plan of one stage. UserError where the stage asks for what the data cannot give.

    Order depends on the seed and on the stage's data settings only (not on its rate or loss), so that
    two rates are compared on the same batches.
    """
    _check(stage, catalogue)
    sampled = _sampled_questions(stage, catalogue, seed)
    grouped = stage.order.endswith("_grouped")
    sequences = []
    for epoch in range(1 if grouped else stage.epochs):
        rng = _rng(seed, stage, f"epoch {epoch}")
        sequence = _sequence(stage, catalogue, rng, repeats=stage.epochs if grouped else 1)
        riders = np.tile(sampled, stage.epochs if grouped else 1)
        steps = ceil(len(sequence) / stage.batch_items)
        sequences += np.array_split(_scatter(sequence, riders, rng), steps)  # steps of an epoch differ by one item at most
    starts = np.concatenate([[0], np.cumsum([len(step) for step in sequences])]).astype(np.int64)
    items = np.concatenate(sequences).astype(np.int64)
    _prove_coverage(stage, catalogue, items, sampled)
    digest = hashlib.sha256(catalogue.digests[items].tobytes() + starts.tobytes())
    return Plan(items, starts, digest.hexdigest())


def coverage(plan: Plan, catalogue: Catalogue) -> dict[str, dict[str, int]]:
    """Per kind that occurs: how many items, and how often the rarest and the commonest of them is trained."""
    times = np.bincount(plan.items, minlength=len(catalogue))
    report: dict[str, dict[str, int]] = {}
    for kind, numbers in catalogue.ranges.items():
        part = times[numbers.start : numbers.stop]
        if part.any():
            report[kind] = {"items": int((part > 0).sum()), "of": len(part), "least": int(part[part > 0].min()), "most": int(part.max())}
    return report


def _check(stage: Stage, catalogue: Catalogue) -> None:
    for kind in stage.mix.kinds():
        if not len(catalogue.ranges[kind]):
            raise UserError(f"a stage mixes {kind}, but the data hold none; leave it out of the mix or add a source for it")
    available = len(catalogue.ranges["train_questions"])
    if stage.sample_questions > available:
        raise UserError(f"sample_questions asks for {stage.sample_questions} train questions, but the data hold {available}")
    if stage.order in _LINKED:
        for kind in stage.mix.kinds():
            numbers = catalogue.ranges[kind]
            if kind.endswith("questions") and (lost := int((catalogue.document_of[numbers.start : numbers.stop] < 0).sum())):
                raise UserError(f"order {stage.order} needs every question linked to a document; {lost} of {len(numbers)} {kind} have none")


def _rng(seed: int, stage: Stage, purpose: str) -> np.random.Generator:
    data_settings = stage.model_dump_json(include={"mix", "order", "sample_questions", "batch_items"})
    return np.random.default_rng(list(hashlib.sha256(f"{seed}|{data_settings}|{purpose}".encode()).digest()))


def _sampled_questions(stage: Stage, catalogue: Catalogue, seed: int) -> Items:
    numbers = catalogue.ranges["train_questions"]
    return _rng(seed, stage, "sample").choice(np.arange(numbers.start, numbers.stop), stage.sample_questions, replace=False)


def _sequence(stage: Stage, catalogue: Catalogue, rng: np.random.Generator, repeats: int) -> Items:
    """One pass over the mixture in the stage's order."""
    if stage.order in _LINKED:
        return _by_document(stage, catalogue, rng, repeats)
    parts = [
        np.tile(np.arange(catalogue.ranges[kind].start, catalogue.ranges[kind].stop), times) for kind, times in stage.mix.kinds().items()
    ]
    sequence = np.concatenate(parts)
    return rng.permutation(sequence) if stage.order == "shuffled" else sequence


def _by_document(stage: Stage, catalogue: Catalogue, rng: np.random.Generator, repeats: int) -> Items:
    """Documents in random order, each with its own questions before or after it.

    A sort by (random rank of the document, questions or document, random): no loop over a million items.
    """
    kinds = stage.mix.kinds()
    parts, documents, is_question = [], [], []
    for kind, times in kinds.items():
        numbers = np.tile(np.arange(catalogue.ranges[kind].start, catalogue.ranges[kind].stop), times * repeats)
        question = kind.endswith("questions")
        parts.append(numbers)
        documents.append(catalogue.document_of[numbers] if question else numbers)
        is_question.append(np.full(len(numbers), question))
    items, document, question = np.concatenate(parts), np.concatenate(documents), np.concatenate(is_question)
    rank = rng.permutation(len(catalogue))[document]
    first = question if stage.order.startswith("questions") else ~question
    return items[np.lexsort((rng.random(len(items)), ~first, rank))]


def _scatter(sequence: Items, riders: Items, rng: np.random.Generator) -> Items:
    """`riders` at random places of `sequence`, whose own order stays."""
    places = np.sort(rng.integers(0, len(sequence) + 1, len(riders)))
    return np.insert(sequence, places, rng.permutation(riders))


def _prove_coverage(stage: Stage, catalogue: Catalogue, items: Items, sampled: Items) -> None:
    expected = np.zeros(len(catalogue), dtype=np.int64)
    for kind, times in stage.mix.kinds().items():
        numbers = catalogue.ranges[kind]
        expected[numbers.start : numbers.stop] = times * stage.epochs
    expected[sampled] += stage.epochs
    assert np.array_equal(np.bincount(items, minlength=len(catalogue)), expected), "each item exactly as often as asked"
