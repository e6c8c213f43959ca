"""The curricula of an experiment side by side: their plans, which stages they share, and where two of them differ."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from console import UserError, say
from data.config import Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.curriculum.plan import Plan, check_stage, compile_plan
from data.wording.templates import Wording, wording_of

Arms = dict[str, list[Stage]]
"""Each arm's whole curriculum, the stages of `base` first; the arm "base" holds those alone."""


def check_arms(arms: Arms, catalogue: Catalogue) -> None:
    """Every stage against the records (data/curriculum/plan.py). UserError names the stage as compile_arms does."""
    for arm, stages in arms.items():
        for n, stage in enumerate(stages):
            try:
                check_stage(stage, catalogue)
            except UserError as error:
                raise UserError(f"{stage_place(arms, arm, n)}: {error}") from None


def compile_arms(
    arms: Arms, catalogue: Catalogue, seed: int, lengths_of: Callable[[Stage], Items | None] = lambda stage: None
) -> dict[str, list[Plan]]:
    """The plans of every arm's stages; equal stages are compiled once.

    `lengths_of`: tokens of each item as that stage words it; asked only where the stage has batch_tokens, or words its questions as the
    model's tokenizer says, which it may not.
    UserError names the stage as the experiment's file does ("arms.mine.stages.0: reason"), so that a command can add the line.
    """
    done: dict[str, Plan] = {}
    told: dict[str, str] = {}
    plans: dict[str, list[Plan]] = {}
    for arm, stages in arms.items():
        plans[arm] = []
        for n, stage in enumerate(stages):
            identity = stage.model_dump_json()
            if identity not in done:
                try:
                    lengths = lengths_of(stage) if stage.batch_tokens or stage.template == "chat" else None
                    done[identity] = compile_plan(stage, catalogue, seed, lengths)
                    for why in filter(None, (odd_schedule(stage, done[identity].num_steps), never_alone(stage))):
                        told.setdefault(why, stage_place(arms, arm, n))
                except UserError as error:
                    raise UserError(f"{stage_place(arms, arm, n)}: {error}") from None
            plans[arm].append(done[identity])
    for why, place in told.items():
        say(f"warning: {place}: {why}")
    return plans


def odd_schedule(stage: Stage, num_steps: int) -> str | None:
    """Why the stage's rate cannot go as it is written; None where it can. The last warm-up step is the first at the whole rate."""
    if stage.warmup_steps > num_steps:
        reached = stage.rate * num_steps / stage.warmup_steps
        return (
            f"warmup_steps {stage.warmup_steps:,} is longer than the stage of {num_steps:,} steps: the rate never comes beyond {reached:.3g} of "
            f"{stage.rate:g}; lower it, or give warmup_share"
        )
    warmup_steps = stage.warmup_steps or round(stage.warmup_share * num_steps)
    decay_steps = max(1, round(num_steps * stage.decay_share)) if stage.schedule == "wsd" else 0
    if decay_steps and warmup_steps + decay_steps > num_steps:
        return (
            f"schedule wsd: warm-up ({warmup_steps:,} steps) and decay ({decay_steps:,}) are longer together than the stage of {num_steps:,} steps: "
            "the decay begins before the rate is reached; lower one of them"
        )
    return None


def never_alone(stage: Stage) -> str | None:
    """Why a stage's questions teach nothing that is asked without a document; None where they can (arXiv 2505.01812)."""
    if stage.passages is None or stage.passages.document + stage.passages.retrieved < 1 - 1e-9:
        return None
    return "passages: every question stands behind a document with its answer, so nothing is learnt that is asked without one; leave some alone"


def stage_place(arms: Arms, arm: str, n: int) -> str:
    """Where the n-th stage of an arm stands in the experiment's file."""
    base = arms.get("base", [])
    here, first, name = (base, 0, "base") if n < len(base) else (arms[arm], len(base), f"arms.{arm}.stages")
    rounds = sum(here[k] is here[k - 1] for k in range(first + 1, n + 1))  # of one stage in the file (Stage.rounds)
    return f"{name}.{n - first - rounds}"


def wordings(arms: Arms) -> dict[Wording, str]:
    """Every wording that stages use, with the place of the first stage that does."""
    found: dict[Wording, str] = {}
    for arm, stages in arms.items():
        for n, stage in enumerate(stages):
            found.setdefault(wording_of(stage), stage_place(arms, arm, n))
    return found


@dataclass
class Node:
    """A stage in the graph of all arms: trained once, whatever the number of arms below it."""

    stage: Stage | None
    plan: Plan | None
    arms: list[str] = field(default_factory=list)
    """Arms that end here."""
    after: dict[str, "Node"] = field(default_factory=dict)

    def num_stages(self) -> int:
        return (self.stage is not None) + sum(node.num_stages() for node in self.after.values())

    def num_steps(self) -> int:
        """Optimiser steps of this stage and all below it."""
        return (self.plan.num_steps if self.plan else 0) + sum(node.num_steps() for node in self.after.values())


def stage_graph(arms: Arms, plans: dict[str, list[Plan]]) -> Node:
    """The arms as a tree of stages: what begins alike is one branch."""
    root = Node(None, None)
    for arm, stages in arms.items():
        node = root
        for stage, plan in zip(stages, plans[arm], strict=True):
            node = node.after.setdefault(stage.model_dump_json(), Node(stage, plan))
        node.arms.append(arm)
    return root


@dataclass(frozen=True)
class StepPlace:
    """One optimiser step of an arm, counted from 0 over all its stages."""

    stage: int
    step: int
    """Within the stage."""
    items: Items


def find_step(plans: list[Plan], number: int) -> StepPlace:
    """UserError when the arm has fewer steps."""
    left = number
    for stage, plan in enumerate(plans):
        if left < plan.num_steps:
            return StepPlace(stage, left, plan.step(left))
        left -= plan.num_steps
    total = sum(plan.num_steps for plan in plans)
    raise UserError(f"step {number}: the arm has {total:,} steps, counted from 0")


def first_difference(a: list[Plan], digests_a: npt.NDArray[np.uint64], b: list[Plan], digests_b: npt.NDArray[np.uint64]) -> int | None:
    """The first step, counted over all stages, in which two arms train other items or another order; None where there is none.

    `digests`: Catalogue.digests, so that plans over two catalogues compare by the items' ids.
    """
    steps_a, steps_b = (
        [digests[plan.step(n)] for plan in plans for n in range(plan.num_steps)] for plans, digests in ((a, digests_a), (b, digests_b))
    )
    for number, (left, right) in enumerate(zip(steps_a, steps_b, strict=False)):
        if not np.array_equal(left, right):
            return number
    return None if len(steps_a) == len(steps_b) else min(len(steps_a), len(steps_b))
