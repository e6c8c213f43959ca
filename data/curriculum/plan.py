"""A stage compiled: for each optimiser step the ordered list of items, nothing else. Pure; independent of workers."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import ceil
from pathlib import Path

import numpy as np

from console import UserError
from data.config import Kind, Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.mixing import by_source, pools, prove_shares
from data.curriculum.orders import WHOLE_STAGE, Items, check_order, sequence
from data.curriculum.quality import check_quality, chosen
from data.curriculum.replay import Replay
from data.records import Question

_SAMPLES: dict[str, Kind] = {"sample_questions": "train_questions", "sample_replay_questions": "replay_questions"}
"""Fields of a stage that let questions ride along, and which."""


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


def compile_plan(stage: Stage, catalogue: Catalogue, seed: int, lengths: Items | None = None) -> Plan:
    """The plan of one stage. UserError where the stage asks for what the data cannot give.

    `lengths`: tokens of each item of the catalogue; only batch_tokens needs them.
    Order depends on the seed and on the stage's data settings only (not on its rate or loss), so that
    two rates are compared on the same batches; and two numbers of epochs or steps begin alike.
    """
    check_stage(stage, catalogue)
    if stage.sources:
        of_source = pools(stage, catalogue)
        steps = by_source(stage, of_source, lambda purpose: _rng(seed, stage, purpose))
        items = np.concatenate(steps)
        prove_shares(stage, of_source, items)
        return _plan(steps, items, catalogue)
    if stage.batch_tokens and lengths is None:
        raise UserError("batch_tokens needs the items' lengths, and without data there are none: give data.root, or use batch_items")
    sampled = _sampled_questions(stage, catalogue, seed)
    epochs, repeats = (1, stage.epochs or 1) if stage.order in WHOLE_STAGE else (stage.epochs, 1)
    replay = Replay(stage, catalogue, lengths, lambda number: _rng(seed, stage, f"replay pass {number}"))
    steps = []
    for epoch in count() if epochs is None else range(epochs):
        rng = _rng(seed, stage, f"epoch {epoch}")
        own = sequence(stage, catalogue, rng, repeats)
        items = _scatter(own, np.tile(sampled, repeats), rng)
        items = _insert(items, replay.draw(own), rng)
        steps += _batches(stage, items, len(items) - repeats * len(sampled), lengths)
        if stage.steps and len(steps) >= stage.steps:
            del steps[stage.steps :]
            break
    items = np.concatenate(steps).astype(np.int64)
    _prove_coverage(stage, catalogue, items, sampled)
    return _plan(steps, items, catalogue)


def _plan(steps: list[Items], items: Items, catalogue: Catalogue) -> Plan:
    starts = np.concatenate([[0], np.cumsum([len(step) for step in steps])]).astype(np.int64)
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


def check_stage(stage: Stage, catalogue: Catalogue) -> None:
    """UserError where the stage asks for what the records cannot give. Cheap: before anything is tokenised."""
    for kind in stage.mix.kinds():
        if not len(catalogue.ranges[kind]):
            raise UserError(f"the stage mixes {kind}, but the data hold none; leave it out of the mix or add a source for it")
    if stage.replay_share and not len(catalogue.ranges["replay_documents"]):
        raise UserError("replay_share draws replay documents, but the data hold none; leave it out or add a source with split: replay")
    for field, kind in _SAMPLES.items():
        if getattr(stage, field) > (available := len(catalogue.ranges[kind])):
            raise UserError(f"{field} asks for {getattr(stage, field)} {kind.replace('_', ' ')}, but the data hold {available}")
    if stage.wordings > 1 and catalogue.records and not any(question.wordings for question in _questions(stage, catalogue)):
        raise UserError(
            f"wordings {stage.wordings}: none of its questions has another wording; write some with python -m data wordings, or use 1"
        )
    available = len(catalogue.ranges["train_questions"])
    if stage.other_weight != 1 and not available:
        raise UserError("other_weight goes by the answers of train questions, but the data hold none")
    if stage.prefix != "none" and catalogue.records:
        read = [kind for kind in stage.mix.kinds() if kind.endswith("documents")]
        parts = [catalogue.records[kind] for kind in read] + ([catalogue.records["replay_documents"]] if stage.replay_share else [])
        if not any(getattr(document, stage.prefix) for part in parts for document in part):
            raise UserError(f"prefix {stage.prefix}: none of the {sum(map(len, parts))} documents has a {stage.prefix}")
    check_order(stage, catalogue)
    check_quality(stage, catalogue)
    if stage.sources:
        pools(stage, catalogue)


def _questions(stage: Stage, catalogue: Catalogue) -> Iterator[Question]:
    """All that the stage may train, riding ones too."""
    kinds = {kind for kind in stage.mix.kinds() if kind.endswith("questions")} | {k for f, k in _SAMPLES.items() if getattr(stage, f)}
    for kind in kinds:
        yield from catalogue.records[kind]  # type: ignore[misc]


def _rng(seed: int, stage: Stage, purpose: str) -> np.random.Generator:
    data_settings = stage.model_dump_json(include={"mix", "order", "sample_questions", "batch_items"})
    return np.random.default_rng(list(hashlib.sha256(f"{seed}|{data_settings}|{purpose}".encode()).digest()))


def _sampled_questions(stage: Stage, catalogue: Catalogue, seed: int) -> Items:
    drawn = []
    for field, kind in _SAMPLES.items():
        numbers, purpose = catalogue.ranges[kind], "sample" if kind == "train_questions" else f"sample {kind}"
        drawn.append(_rng(seed, stage, purpose).choice(np.arange(numbers.start, numbers.stop), getattr(stage, field), replace=False))
    return np.concatenate(drawn)


def _scatter(items: Items, riders: Items, rng: np.random.Generator) -> Items:
    """`riders` at random places of `items`, whose own order stays."""
    places = np.sort(rng.integers(0, len(items) + 1, len(riders)))
    return np.insert(items, places, rng.permutation(riders))


def _insert(items: Items, replayed: Items, rng: np.random.Generator) -> Items:
    """`replayed` at random places, in their own order: where steps cut the last pass, what was drawn last is not trained."""
    return np.insert(items, np.sort(rng.integers(0, len(items) + 1, len(replayed))), replayed)


def _batches(stage: Stage, items: Items, num_own: int, lengths: Items | None) -> list[Items]:
    """A pass cut into steps. `num_own`: items without the riders, whose count alone sets the number of steps."""
    if stage.batch_items:
        return np.array_split(items, ceil(num_own / stage.batch_items))  # steps of an epoch differ by one item at most
    assert lengths is not None and stage.batch_tokens
    ends = np.cumsum(lengths[items])
    cuts, begin = [], 0
    while begin < len(items):
        used = ends[begin - 1] if begin else 0
        begin = max(begin + 1, int(np.searchsorted(ends, used + stage.batch_tokens, side="right")))
        cuts.append(begin)
    return np.split(items, cuts[:-1])


def _prove_coverage(stage: Stage, catalogue: Catalogue, items: Items, sampled: Items) -> None:
    """Each item exactly as often as asked; where steps cut the last pass, no less than in the passes before and no more than in it."""
    once = np.zeros(len(catalogue), dtype=np.int64)
    for kind, times in stage.mix.kinds().items():
        once[chosen(stage, catalogue, kind)] = times
    once[sampled] += 1
    times_trained = np.bincount(items, minlength=len(catalogue))
    if stage.replay_share:
        replayed = catalogue.ranges["replay_documents"]
        drawn = times_trained[replayed.start : replayed.stop].copy()
        assert drawn.max() - drawn.min() <= 1, "each replay document once before any comes again"
        times_trained[replayed.start : replayed.stop] = 0
    whole, cut = (stage.epochs, 0) if stage.epochs else divmod(int(times_trained.sum()), int(once.sum()))
    assert np.all(times_trained >= once * whole) and np.all(times_trained <= once * (whole + (cut > 0))), "each item as often as asked"
