"""What an experiment asks of a cluster: its different stages, compiled by the data room, as steps, tokens and packed rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cluster.cost.speed import StepLoad
from console import UserError
from data.config import Kind, Stage
from data.curriculum.arms import Node, stage_graph
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.curriculum.plan import Plan
from data.planning.plan_command import Planned, plan_arms
from data.planning.plan_report import packing_fill, sampled_steps
from data.rows.packing import num_pieces
from data.rows.token_store import num_others
from experiment import Experiment

_SAMPLED_STEPS = 8  # packed of each stage, for every number of ranks and length of rows


@dataclass(frozen=True)
class Before:
    """What a stage reads before its first step (trainer/teaching/): tokens that its teachers read, with own answers token by token; how many teachers there are,
    and in how many passes at least; tokens of the replay items that say which weights matter (anchor.ewc), and the number of those."""

    taught: int = 0
    teachers: int = 0
    passes: int = 1
    held: int = 0
    held_items: int = 0


@dataclass(frozen=True)
class StageWork:
    """One stage; arms that share it train it once."""

    label: str
    plan: Plan
    lengths: Items  # (items of the catalogue,): tokens of each
    before: Before = Before()

    @property
    def steps(self) -> int:
        return self.plan.num_steps

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths[self.plan.items].sum())

    @cached_property
    def attended(self) -> float:
        """s̄ = Σl² / Σl: how many tokens a token's attention sees."""
        lengths = self.lengths[self.plan.items].astype(float)
        return float((lengths**2).sum() / lengths.sum())

    def load(self, num_gpus: int, row_tokens: int, static: bool = False, one_item: bool = False) -> StepLoad:
        """A step as the trainer packs it for so many ranks, averaged over steps at equal distances.

        `static`: and pads its rows to few lengths (trainer.shapes); `one_item`: rows hold one item each (trainer.packing).
        """
        num_gpus = min(num_gpus, self._most_pieces(row_tokens))  # more of them have no work, and the fullest one has the same
        how = (num_gpus, row_tokens, one_item)
        if how not in self._packed:
            self._packed[how] = packing_fill(self.plan, self.lengths, num_gpus, row_tokens, _SAMPLED_STEPS, one_item)
        packed = self._packed[how]
        fullest = self.tokens / self.steps / num_gpus * packed["padded_busiest" if static else "busiest"]
        return StepLoad(fullest, packed["micro_steps"], self.attended, packed["padded_fill"] if static else 1.0)

    def _most_pieces(self, row_tokens: int) -> int:
        if row_tokens not in self._pieces:
            steps = sampled_steps(self.plan, _SAMPLED_STEPS)
            self._pieces[row_tokens] = max(num_pieces(self.lengths[self.plan.step(n)], row_tokens) for n in steps)
        return self._pieces[row_tokens]

    @cached_property
    def _pieces(self) -> dict[int, int]:
        """Of a step at most, by length of rows."""
        return {}

    @cached_property
    def _packed(self) -> dict[tuple[int, int, bool], dict[str, float]]:
        """Set-ups that differ in ranks and rows alone share their packing."""
        return {}


@dataclass(frozen=True)
class Workload:
    stages: list[StageWork]
    origin: str
    """Where sizes come from, for people."""
    questions: int = 0
    """That the exam asks each model, in every mode."""

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def longest(self) -> int:
        return max(int(stage.lengths[stage.plan.items].max()) for stage in self.stages)


def workload_of(experiment: Experiment) -> Workload:
    """From the data where they are at hand, else from declared counts and tokens. UserError where neither says how long items are."""
    planned = planned_of(experiment)
    origin = f"{planned.origin}; tokens {planned.lengths.note}"
    return Workload(list(_stages(planned)), origin, _questions(experiment, planned))


def _questions(experiment: Experiment, planned: Planned) -> int:
    """Test questions in every mode, and the samples of others; as declared where no data are at hand."""
    exam, corpus = experiment.exam, planned.corpus
    test, train = (
        len(corpus.part(split).questions) if corpus else experiment.data.counts.get(f"{split}_questions", 0) for split in ("test", "train")
    )
    return min(test, exam.test_questions or test) * len(exam.modes) + min(train, exam.train_questions)


def planned_of(experiment: Experiment) -> Planned:
    """The experiment compiled by the data room, as `python -m data plan` prints it."""
    model, tiny = experiment.model, experiment.model.tiny
    return plan_arms(
        experiment.name,
        experiment.data,
        experiment.curricula(),
        experiment.seed,
        model.name,
        model.revision,
        tiny.vocab_size if tiny else None,
        experiment.trainer.row_bound,
        experiment.base_records,
        experiment.exam.answer_tokens,
        model.bos,
    )


def _stages(planned: Planned) -> Iterator[StageWork]:
    for node in _below(stage_graph(planned.arms, planned.plans)):
        assert node.stage is not None and node.plan is not None
        lengths = planned.lengths.of(node.stage)
        if lengths is None:
            raise UserError(
                "data.tokens_each: how many tokens items have is not known without data: give data.root=DIR, or declare the mean, "
                "e.g. data.tokens_each={train_documents: 150, train_questions: 40}"
            )
        lengths = np.asarray(lengths)
        yield StageWork(
            " + ".join(node.stage.mix.kinds()), node.plan, lengths, read_before(node.stage, node.plan, lengths, planned.catalogue)
        )


def read_before(stage: Stage, plan: Plan, lengths: Items, catalogue: Catalogue) -> Before:
    """Of a question in w wordings that is trained n times a step draws w · (1 − (1 − 1/w)ⁿ) different ones."""
    if not (stage.teach or stage.anchor):
        return Before()
    items, times = np.unique(plan.items, return_counts=True)

    def of(kinds: list[Kind]) -> tuple[Items, Items]:
        here = np.zeros(len(items), dtype=bool)
        for kind in kinds:
            here |= (items >= catalogue.ranges[kind].start) & (items < catalogue.ranges[kind].stop)
        return items[here], times[here]

    asked_in = _asked_in(stage, catalogue)

    def drawn(found: Items, often: Items) -> npt.NDArray[np.float64]:
        return asked_in[found] * (1 - (1 - 1 / asked_in[found]) ** often)

    asked, often = of(stage.taught_kinds())
    document = catalogue.document_of[asked]
    behind = np.where(document >= 0, lengths[document], lengths[asked])  # a document is read twice
    taught = float((drawn(asked, often) * (lengths[asked] + behind)).sum())
    own = stage.teach.answer_tokens if stage.teach and stage.teach.answers == "own" else 0
    taught += own * float((drawn(asked, often) * lengths[asked]).sum())
    replayed, often = of(stage.anchored_kinds())
    if stage.anchor and stage.anchor.weight:
        taught += float((drawn(replayed, often) * lengths[replayed]).sum())
    by_start = bool(own or (stage.anchor and stage.anchor.weight) or (stage.teach and not stage.teach.model))
    teachers = by_start + bool(stage.teach and stage.teach.model) if taught else 0
    held = stage.anchor is not None and stage.anchor.ewc > 0
    return Before(round(taught), teachers, own + 1, int(lengths[replayed].sum()) * held, len(replayed) * held)


def _asked_in(stage: Stage, catalogue: Catalogue) -> Items:
    """(items of the catalogue,): in how many wordings the stage asks each; without records as many as it may."""
    if stage.wordings > 1 and catalogue.records:
        return 1 + num_others(catalogue, stage.wordings)
    asked = np.ones(len(catalogue.document_of), dtype=np.int64)
    for kind, numbers in catalogue.ranges.items():
        if kind.endswith("questions"):
            asked[numbers.start : numbers.stop] = stage.wordings
    return asked


def _below(node: Node) -> Iterator[Node]:
    for child in node.after.values():
        yield child
        yield from _below(child)
