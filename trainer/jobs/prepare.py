"""From an experiment's values to jobs: records, tokens, plans, keys. Everything before the first worker starts."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from console import UserError, say
from data.config import Stage
from data.curriculum.arms import stage_place
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.curriculum.plan import Plan
from data.ground.contents import names_and_contents, weight_files
from data.rows.important import Important
from data.rows.lessons import Beside, Lessons, Teaching
from data.rows.passages import Passages
from data.rows.static_rows import best_row_tokens
from data.rows.token_store import TokenStore
from data.wording.templates import PASSAGES, wording_of
from trainer.config import MOST_ROW_TOKENS, ModelConfig, TrainerConfig
from trainer.jobs.known_as import Names
from trainer.store.stages import stage_key

_CPU_ROW_TOKENS = 4096
"""Where rows are not padded, longer ones win nothing."""


@dataclass(frozen=True)
class Job:
    """One stage to train, with everything a worker needs; paths are on storage that all nodes share."""

    key: str
    parent: str | None
    """Key of the stage before; None: the initial model."""
    label: str
    """For people: "pit 2/3: test_documents"."""
    stage: Stage
    num_steps: int
    plan_path: str
    plan_sha256: str
    capacity: int
    """Tokens of a row."""
    longest: int
    """Tokens of an item before it is cut."""
    number: int = 0
    """Place in its arm, base stages included: the round of what is frozen. Equal keys have equal places."""
    model_folder: str | None = None
    """Of an arm that starts from another model than the experiment's: config, tokenizer and initial weights."""
    longest_item: int = 0
    """Tokens of the stage's longest item, cut as above; 0: `longest`."""
    row_tokens: int = 0
    """Tokens of the longest row that the stage can have; 0: `capacity`."""
    lessons: Lessons | None = None
    """Which of its items follow a teacher."""
    passages: Passages | None = None
    """What may stand before its questions."""
    important: Important | None = None
    """Items that say which weights must stay near the start."""


@dataclass(frozen=True)
class Start:
    """A model that an arm may start from."""

    folder: str
    identity: "Identity"


@dataclass(frozen=True)
class Identity:
    """What stands for initial weights in the first stage's key."""

    now: str
    earlier: str
    """What stood for them until 2026-11-28 (trainer/jobs/known_as.py)."""


def initial_identity(model: ModelConfig, model_folder: Path, seed: int, tokens_sha256: str, memory: Path | None = None) -> Identity:
    """A tiny model follows from its settings, seed and texts; any other is what is in its files, wherever these lie and whatever they are called.

    `memory`: see data/ground/contents.py. Earlier a named model was its name and its files' sizes and times.
    """
    if model.tiny:
        told = model.model_dump(mode="json", exclude={"bos", "resize_embeddings"})  # what begins texts is told by their tokens
        same = _digest({"model": told, "seed": seed, "tokens": tokens_sha256})
        return Identity(same, same)
    files = weight_files(model_folder)
    later = {"bos"} | ({"resize_embeddings"} if not model.resize_embeddings else set())
    sizes = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    earlier = {"model": model.model_dump(mode="json", exclude=later), "files": sizes}
    return Identity(_digest({"contents": names_and_contents(files, memory)}), _digest(earlier))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def make_jobs(
    arms: dict[str, list[Stage]],
    plans: dict[str, list[Plan]],
    store: TokenStore,
    trainer: TrainerConfig,
    precision: str,
    capacity: int,
    longest: int,
    seed: int,
    initial: Identity,
    plan_folder: Path,
    starts: dict[str, Start] | None = None,
    names: Names | None = None,
    teaching: Teaching | None = None,
) -> tuple[list[Job], dict[str, list[str]]]:
    """Every distinct stage once, parents first, and each arm as its list of keys. Plans are written to `plan_folder`.

    `starts`: of arms that do not start from the `initial` weights. `names`: under which keys stages lie (None: under their own).
    `teaching`: what the lessons of stages with a teacher are made of.
    """
    jobs: dict[str, Job] = {}
    keys: dict[str, list[str]] = {}
    plan_folder.mkdir(parents=True, exist_ok=True)
    for arm, stages in arms.items():
        parent: str | None = None
        start = (starts or {}).get(arm)
        before = start.identity if start else initial
        keys[arm] = []
        for n, (stage, plan) in enumerate(zip(stages, plans[arm], strict=True)):
            worded = store.worded(wording_of(stage))
            cut = longest if int(worded.lengths.max(initial=0)) > longest else None
            beside = _beside(teaching, stage, plan, worded, before.now, stage_place(arms, arm, n))
            facts = (stage, plan.sha256, worded.sha256, trainer, precision, cut, seed)
            now = stage_key(before.now, *facts, aids_sha256=_aids(stage, worded), beside=beside.identities)
            before = Identity(now, stage_key(before.earlier, *facts, beside=beside.identities))
            key = names.of(before.now, before.earlier) if names else before.now
            if key not in jobs:
                path = _write_plan(plan, worded, plan_folder, beside.lengths)
                label = f"{arm} {n + 1}/{len(stages)}: {' + '.join(stage.mix.kinds())}"
                own = start.folder if start else None
                sizes = _longest(plan, worded.item_lengths if beside.lengths is None else beside.lengths, capacity, longest)
                more = (*sizes, beside.lessons, beside.passages, beside.important)
                jobs[key] = Job(
                    key, parent, label, stage, plan.num_steps, str(path.resolve()), plan.sha256, capacity, longest, n, own, *more
                )
            keys[arm].append(key)
            parent = key
        if arm == "base" and keys[arm] and teaching:  # whose hf/ is there before any arm's teacher is asked
            hf = plan_folder.parent / "stages" / keys[arm][-1] / "hf"
            teaching = replace(teaching, models={**teaching.models, "base": (str(hf.resolve()), before.now)})
    return list(jobs.values()), keys


def auto_row_tokens(stages: Iterable[tuple[Stage, Plan]], store: TokenStore, gpus: int, longest: int, catalogue: Catalogue | None) -> int:
    """trainer.row_tokens: auto, resolved for this experiment's steps. What is learnt does not depend on it.

    `gpus`: training processes that have one each; 0: CPUs. `catalogue`: where texts are read behind their documents (teach, passages), which a row must hold as well.
    """
    trained = [(stage, plan, np.asarray(store.worded(wording_of(stage)).lengths)) for stage, plan in stages]
    distinct = {plan.sha256: (plan, lengths) for _, plan, lengths in trained}
    pieces = [int(lengths[plan.items].max(initial=1)) for plan, lengths in distinct.values()]
    if catalogue:
        passages = np.asarray(store.worded(PASSAGES).lengths)
        pieces += [_longest_behind(*of, passages, catalogue) for of in trained]
    item = min(longest, max(pieces, default=1))
    if not gpus:
        return max(item, _CPU_ROW_TOKENS)
    chosen, found = best_row_tokens(list(distinct.values()), gpus, item, MOST_ROW_TOKENS)
    say(f"trainer.row_tokens: auto takes {chosen:,}: {found:.1%} of the tokens of padded rows are real")
    return chosen


def _longest_behind(stage: Stage, plan: Plan, lengths: Items, passages: Items, catalogue: Catalogue) -> int:
    """Tokens of the longest text that a teacher, or the stage itself, may read behind a document."""
    taught, found = stage.taught_kinds(), [0]
    for kind, numbers in catalogue.ranges.items():
        items = plan.items[(plan.items >= numbers.start) & (plan.items < numbers.stop)]
        if kind.endswith("documents") and kind in taught:
            found.append(int((lengths[items] + passages[items]).max(initial=0)))
        elif kind.endswith("questions") and (kind in taught or stage.passages):
            room = stage.teach.answer_tokens if kind in taught and stage.teach and stage.teach.answers == "own" else 0
            found.append(int(lengths[items].max(initial=0)) + int(passages.max(initial=0)) + room)
    return max(found)


def _aids(stage: Stage, store: TokenStore) -> str | None:
    """What of the store's aids the stage reads beside the tokens; None: nothing."""
    read = stage.input_noise or stage.sentence_shuffle or stage.other_weight != 1 or store.others is not None
    return store.aids_sha256() if read else None


def _beside(teaching: Teaching | None, stage: Stage, plan: Plan, store: TokenStore, start: str, place: str) -> Beside:
    try:
        return teaching.beside(stage, plan, store, start) if teaching else Beside()
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _longest(plan: Plan, item_lengths: Items, capacity: int, longest: int) -> tuple[int, int]:
    """Tokens of the longest piece of an item and of the longest row that the plan can give, whatever the number of ranks."""
    lengths = np.asarray(item_lengths)[plan.items]
    steps = np.add.reduceat(lengths, plan.starts[:-1]) if len(lengths) else np.zeros(1)
    return min(longest, int(lengths.max(initial=1))), min(capacity, int(steps.max()))


def _write_plan(plan: Plan, store: TokenStore, folder: Path, longer: Items | None = None) -> Path:
    """With the items' tokens beside it (`longer`: with what may stand before them). The hash of a plan names items by id, its file by number: the name of
    the file follows both, so that no file outlives its numbering."""
    lengths = np.asarray(store.lengths if longer is None else longer, dtype=np.int32)
    more = b"" if longer is None else lengths.tobytes()
    numbering = hashlib.sha256(plan.items.tobytes() + store.sha256.encode() + more).hexdigest()[:8]
    path = folder / f"{plan.sha256[:16]}-{numbering}.npz"
    if not lengths_of(path).exists() or not path.exists():
        draft = path.with_suffix(f".{os.getpid()}.npz")
        plan.save(draft)
        np.save(of_lengths := lengths_of(draft), lengths)
        of_lengths.replace(lengths_of(path))
        draft.replace(path)
    return path


def lengths_of(plan_path: Path) -> Path:
    """The file with the tokens of every item of the catalogue, as the plan's stage reads them."""
    return plan_path.with_suffix(".lengths.npy")


def check_lengths(store: TokenStore, catalogue: Catalogue, longest: int, long_documents: str) -> int:
    """Refuses items that no row or no model can hold; returns how many documents will be split."""
    long = np.flatnonzero(store.item_lengths > longest)
    for item in long:
        kind = catalogue.kind_of(int(item))
        if kind.endswith("questions") or long_documents == "refuse":
            what = "question" if kind.endswith("questions") else "document"
            raise UserError(
                f"{what} {catalogue.ids[item]} has {store.item_lengths[item]} tokens; rows and the model's positions hold {longest}: raise "
                f"trainer.row_tokens where the model allows it, or take it out{'' if what == 'question' else ', or set trainer.long_documents=split'}"
            )
    return len(long)


def refuse_longer_items(store: TokenStore, catalogue: Catalogue, holds: int, longest: int, name: str) -> None:
    """UserError where a further model has fewer positions than an item, as the experiment's own model reads it, has tokens."""
    long = np.flatnonzero(np.minimum(store.item_lengths, longest) > holds)
    if len(long):
        raise UserError(
            f"models.{name}: its positions hold {holds} tokens, and {catalogue.ids[int(long[0])]} has {min(store.item_lengths[long[0]], longest)} (so "
            f"{len(long)} items): set trainer.row_tokens={holds} and trainer.long_documents=split, or take another model"
        )


def job_dict(job: Job) -> dict[str, Any]:
    """For the manifest: plain values."""
    return {**asdict(job), "stage": job.stage.model_dump(mode="json")}
