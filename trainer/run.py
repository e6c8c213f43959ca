"""The driver's paper work: prepares an experiment, and writes down which stages make up which arm. Training is trainer/drive.py's."""

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console import UserError, progress, say
from data.config import DataConfig, Stage
from data.corpus.changes import EARLIER, RECORDS, Changes, changes_since, fit_stages, read_earlier, untrained, write_records
from data.curriculum.arms import check_arms, compile_arms, wordings
from data.curriculum.catalogue import Catalogue, catalogue_of
from data.curriculum.plan import Plan
from data.ground.contents import MEMORY
from data.load import load_corpus
from data.records import Corpus
from data.rows.framing import begins_otherwise, template_of
from data.rows.lessons import Teaching
from data.rows.token_store import TokenStore, store_key, write_store, write_wordings
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import PASSAGES, exam_template, wording_of
from trainer.config import ModelConfig, TrainerConfig
from trainer.jobs.begun import begun_as
from trainer.jobs.graph import graph_lines
from trainer.jobs.known_as import FILE as KNOWN_AS
from trainer.jobs.known_as import Names
from trainer.jobs.model_source import describe_model, resolve_model
from trainer.jobs.old_stages import is_rounded, set_aside_rounded, warn_of_rounded_parent
from trainer.jobs.parent import Parent, check_same_model, find_parent
from trainer.jobs.prepare import Job, auto_row_tokens, check_lengths, initial_identity, make_jobs, refuse_longer_items
from trainer.jobs.sources import name_of, refuse_another_experiment, refuse_changed_data
from trainer.jobs.starts import find_models
from trainer.jobs.text_model import TEXT_MODELS, text_folder
from trainer.jobs.worker_settings import Precision
from trainer.network.model_check import check_model_folder
from trainer.network.model_tensors import check_tokens, embedding_rows
from trainer.network.text_config import positions
from trainer.step.fits import check_stages
from trainer.store.mirror import Mirror
from trainer.store.stages import StageStore, write_json

_SCANNED = 2**24
"""Tokens looked at together: a memory-mapped store is larger than memory."""


@dataclass(frozen=True)
class Prepared:
    corpus: Corpus
    catalogue: Catalogue
    store: TokenStore
    tokens_folder: Path
    model_folder: str
    plans: dict[str, list[Plan]]
    jobs: list[Job]
    keys: dict[str, list[str]]
    longest: int
    """Tokens of an item before it is cut."""
    precision: Precision
    split_documents: int
    whole: Corpus
    """All records as they were read: with a parent, `corpus` has what it held already in the replay split."""
    parent: Parent | None = None
    changes: Changes | None = None
    models: dict[str, str] = field(default_factory=dict)
    """Folders of further models, by name."""
    starts: dict[str, str] = field(default_factory=dict)
    """Of arms that start from one of them, its folder."""

    def items_of(self, event: dict[str, Any]) -> str:
        """ ": items a, b, … of stage" for an event of a step; "" for others."""
        job = next((job for job in self.jobs if job.key == event.get("key")), None)
        if job is None:
            return ""
        items = plan_of(self, job).step(event["step"])
        ids = [self.catalogue.ids[n] for n in items]
        return f" ({job.label}; its {len(ids)} items: {', '.join(ids)})"


def prepare(
    folder: Path,
    data: DataConfig,
    model: ModelConfig,
    trainer: TrainerConfig,
    arms: dict[str, list[Stage]],
    seed: int,
    gpus: int,
    base_run: str | None = None,
    models: dict[str, ModelConfig] | None = None,
    starts: dict[str, str] | None = None,
    records: Corpus | None = None,
) -> Prepared:
    """Records → tokens → plans → jobs. UserError for anything wrong with them; nothing is trained by then.

    `gpus`: training processes, each of which has one; 0: they are on CPUs. `base_run`: the run that all arms start from, and whose records say what is new (trainer/jobs/parent.py, data/corpus/changes.py).
    `models`: further models by name, `starts`: the arms that start from one of them (trainer/jobs/starts.py). `records`: all
    of them, where they have been read (trainer/jobs/reading.py).
    """
    refuse_another_experiment(folder, data, model)
    parent = find_parent(base_run) if base_run else None
    whole = corpus = load_corpus(data, seed, folder / "refused.jsonl") if records is None else records
    changes = None
    if parent:
        changes, corpus = changes_since(whole, read_earlier(parent.records))
        arms = {arm: fit_stages(stages, whole, corpus) for arm, stages in arms.items()}
        _announce_changes(parent, changes, arms, corpus)
        check_same_model(parent, model, describe_model(folder, model))
    catalogue = catalogue_of(corpus)
    check_arms(arms, catalogue)
    given = parent.hf if parent else Path(resolve_model(folder, model, catalogue, seed))
    tensors = check_model_folder(given)
    text = text_folder(given, folder / TEXT_MODELS) if model.name else given
    model_folder = str(begun_as(Path(text), (folder / "model-begun").resolve(), model.bos))
    if Path(text) != given.resolve():
        tensors = check_model_folder(Path(model_folder))
    check_stages({arm: stages for arm, stages in arms.items() if arm not in (starts or {})}, model_folder, trainer)
    tokenizer = load_tokenizer(model_folder)
    encoder = Encoder(tokenizer)
    tokens_folder = folder / "tokens" / store_key(catalogue, encoder)[:16]  # workers may still read the store of other records
    with progress() as bar:
        task = bar.add_task("tokens", total=len(catalogue))
        store = write_store(tokens_folder, catalogue, encoder, lambda n: bar.advance(task, n), folder / MEMORY)
    check_tokens(_largest_token(store), embedding_rows(tensors), model_folder)
    longest = min(trainer.row_bound, positions(Path(model_folder)))
    split_documents = check_lengths(store, catalogue, longest, trainer.long_documents)
    for wording, place in wordings(arms).items():
        try:
            write_wordings(tokens_folder, catalogue, tokenizer, [wording], folder / MEMORY)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        check_tokens(_largest_token(store.worded(wording)), embedding_rows(tensors), model_folder)
        check_lengths(store.worded(wording), catalogue, longest, trainer.long_documents)
    precision = precision_of(trainer, gpus > 0)
    if trainer.attention != "auto":  # resolved on the workers; what was asked for by name is refused before they start
        from trainer.network.families import check_attention

        check_attention(model_folder, trainer.attention, gpus > 0, precision)
    if trainer.compile == "on" or trainer.cuda_graphs or trainer.fp8 != "off":
        from trainer.step.switches import check_before_workers

        check_before_workers(trainer, gpus, precision, any(stage.adapter for stages in arms.values() for stage in stages))
    announce_lost_decay(arms, trainer.weight_decay)
    plans = compile_arms(arms, catalogue, seed, lambda stage: store.worded(wording_of(stage)).item_lengths)
    starts_trained = parent is not None and parent.stage is not None
    initial = parent.identity() if parent and starts_trained else initial_identity(model, given, seed, store.sha256, folder / MEMORY)
    if beside := [stage for stages in arms.values() for stage in stages if stage.teach or stage.anchor or stage.passages]:
        write_wordings(tokens_folder, catalogue, tokenizer, [PASSAGES])
    pairs = [pair for arm, stages in arms.items() for pair in zip(stages, plans[arm], strict=True)]
    capacity = (
        trainer.row_tokens if trainer.row_tokens != "auto" else auto_row_tokens(pairs, store, gpus, longest, catalogue if beside else None)
    )
    found = find_models(folder, models or {}, model_folder, seed, store.sha256)
    hold = {name: min(longest, positions(Path(start.folder))) for name, start in found.items()}
    for name, holds in hold.items():
        refuse_longer_items(store, catalogue, holds, longest, name)
    own = {arm: found[name] for arm, name in (starts or {}).items()}
    for arm, folder_of_arm in own.items():
        check_stages({arm: arms[arm]}, folder_of_arm.folder, trainer)
    mirror = Mirror(trainer.checkpoint.mirror, folder) if trainer.checkpoint.mirror else None
    if mirror:
        mirror.fetch_file(KNOWN_AS)
    names = Names(folder, mirror.holds if mirror else lambda key: False)
    teaching = None
    if beside:
        begun = {w: Encoder(tokenizer, w) for w in map(wording_of, beside)}
        beginnings = {(w, kind): begun[w].starts(kind) for w in begun for kind in catalogue.ranges}
        teachers = {name: (start.folder, start.identity.now) for name, start in found.items()}
        readable = min([longest, capacity, *hold.values()])
        teaching = Teaching(
            folder / "teachers", tokens_folder, catalogue, beginnings, teachers, readable, encoder, seed, trainer.teacher_precision
        )
    jobs, keys = make_jobs(arms, plans, store, trainer, precision, capacity, longest, seed, initial, folder / "plans", own, names, teaching)
    names.save()
    if mirror and names.found:
        mirror.push_file(KNOWN_AS)
    if names.found:
        say(f"{len(names.found)} stages lie under keys of an earlier version and are used as they are (docs/reliability.md)")
    StageStore(folder).tidy()
    refuse_changed_data(folder, data, {job.key for job in jobs})
    set_aside_rounded(StageStore(folder), jobs, model_folder, trainer.keep_rounded_stages)
    if starts_trained and parent and parent.stage:
        warn_of_rounded_parent(parent.stage, model_folder, parent.text)
    if mirror:
        useless = (lambda manifest: False) if trainer.keep_rounded_stages else lambda manifest: is_rounded(manifest, model_folder)
        for name in mirror.fetch([job.key for job in jobs], useless):
            say(f"fetched from the mirror: {name}")
    return Prepared(
        corpus,
        catalogue,
        store,
        tokens_folder,
        model_folder,
        plans,
        jobs,
        keys,
        longest,
        precision,
        split_documents,
        whole,
        parent,
        changes,
        {name: start.folder for name, start in found.items()},
        {arm: start.folder for arm, start in own.items()},
    )


def precision_of(trainer: TrainerConfig, has_gpu: bool) -> Precision:
    """UserError where the ZeRO stage cannot train in it."""
    precision: Precision = ("bf16" if has_gpu else "fp32") if trainer.precision == "auto" else trainer.precision
    if "bf16" in (precision, trainer.teacher_precision) and trainer.zero_stage == 0:
        raise UserError("trainer.zero_stage: ZeRO 0 gives no access to the fp32 masters of a bf16 model; use 1, 2 or 3")
    return precision


def _announce_changes(parent: Parent, changes: Changes, arms: dict[str, list[Stage]], corpus: Corpus) -> None:
    say(f"since {parent.text}: {changes.in_words()}")
    if changes.nothing_new:
        say("nothing is new, so there is nothing to train")
    for arm, stages in arms.items():
        if arm != "base" and (kinds := untrained(stages, corpus)):
            say(f"warning: {arm}: new or changed {' and '.join(kinds)} are in no stage's mix: they will not be trained")


_LEAST_DECAY = 2.0**-25
"""Half of the last bit of fp32 below 1: torch multiplies a weight by 1 - rate × decay."""


def announce_lost_decay(arms: dict[str, list[Stage]], weight_decay: float) -> None:
    """Where a stage's highest rate is so small that its weights do not decay at all."""
    lost = {
        f"{arm}: stage {n}": stage.rate
        for arm, stages in arms.items()
        for n, stage in enumerate(stages, start=1)
        if 0 < stage.rate * weight_decay < _LEAST_DECAY
    }
    if lost:
        place, rate = next(iter(lost.items()))
        say(
            f"warning: {place}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}: trainer.weight_decay {weight_decay:g} does nothing at rate {rate:g}: "
            f"their product is below {_LEAST_DECAY:.1g}, so that 1 less it is 1 in fp32"
        )


def pending(folder: Path, prepared: Prepared) -> list[Job]:
    """Jobs that are not committed yet, parents first."""
    store = StageStore(folder)
    return [job for job in prepared.jobs if store.manifest(job.key) is None]


def write_arms(folder: Path, name: str, prepared: Prepared, model: ModelConfig | None = None, merges: Collection[str] = ()) -> None:
    """arms.json: what the exam reads: every arm whose stages are all committed, the base first.

    An arm's cost counts its own stages, not the base's. `merges`: arms that are put together from others, kept where they are what they were.
    """
    store = StageStore(folder)
    base = prepared.keys["base"]
    stage_of = {job.key: job.stage for job in prepared.jobs}
    arms: dict[str, Any] = {}
    for arm, keys in prepared.keys.items():
        if any(store.manifest(key) is None for key in keys):
            continue
        own = [store.manifest(key) for key in keys if arm == "base" or key not in base]
        totals = [manifest["totals"] for manifest in own if manifest]
        plan_hashes = [plan.sha256 for plan in prepared.plans[arm]]
        start = prepared.starts.get(arm, prepared.model_folder)
        arms[arm] = {
            "hf": str(Path("stages") / keys[-1] / "hf") if keys else _relative(start, folder),
            "stage": keys[-1] if keys else None,
            "stages": keys,
            "steps": sum(t["steps"] for t in totals),
            "tokens": sum(t["tokens"] for t in totals),
            "seconds": sum(t["seconds"] for t in totals),
            "plan_hash": plan_hashes[-1] if plan_hashes else "",
            "plan_hashes": plan_hashes,
            "template": exam_template([stage_of[key] for key in keys], template_of(Path(start))),
            **begins_otherwise(Path(start)),
        }
    arms |= _merged_before(folder, arms, merges)
    origin = {"model": name_of(model)} if model else {}
    write_json(folder / "arms.json", {"experiment": name, **origin, "records_sha256": prepared.corpus.fingerprint(), "arms": arms})
    write_records(folder / RECORDS, prepared.whole)
    if prepared.parent:
        shutil.copyfile(prepared.parent.records, folder / EARLIER)
        assert prepared.changes is not None
        write_json(folder / "changes.json", {"since": prepared.parent.text, **prepared.changes.as_dict()})


def _merged_before(folder: Path, arms: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Arms that were put together before of what is as it was then: a run that is stopped does not come to put them together again, and their models would be
    nobody's."""
    try:
        before = json.loads((folder / "arms.json").read_text(encoding="utf-8"))["arms"]
    except (OSError, ValueError, KeyError):
        return {}

    def same(part: str) -> bool:
        return part not in before or ("merged" not in before[part] and before[part]["stage"] == arms.get(part, {}).get("stage"))

    merged = {name: arm for name, arm in before.items() if "merged" in arm and name in names and (folder / arm["hf"]).is_dir()}
    return {name: arm for name, arm in merged.items() if all(same(str(arm["merged"][role])) for role in ("of", "instruct", "base"))}


def _relative(path: str, folder: Path) -> str:
    """Below the run folder without its place, so that the folder can be moved; anything else as it is."""
    inside = Path(path).is_relative_to(folder.resolve())
    return str(Path(path).relative_to(folder.resolve())) if inside else path


def plan_of(prepared: Prepared, job: Job) -> Plan:
    return next(plan for plans in prepared.plans.values() for plan in plans if plan.sha256 == job.plan_sha256)


def _largest_token(store: TokenStore) -> int:
    return max((int(store.tokens[start : start + _SCANNED].max()) for start in range(0, len(store.tokens), _SCANNED)), default=0)


def announce(prepared: Prepared, todo: list[Job]) -> None:
    """What will be trained and what is already there: a line in all, and the graph of stages that arms share."""
    done = len(prepared.jobs) - len(todo)
    alone = sum(plan.num_steps for arm, plans in prepared.plans.items() if arm != "base" for plan in plans)
    say(
        f"{len(prepared.keys) - 1} arms, {len(prepared.jobs)} stages: {done} already trained, {len(todo)} to train "
        f"({sum(job.num_steps for job in todo):,} steps; every arm alone would take {alone:,})"
    )
    for job in todo:
        if job.lessons:
            trained = prepared.store.item_lengths[plan_of(prepared, job).items]
            say(f"{job.label}: {job.lessons.in_words(int(trained.sum()))}")
        if job.important:
            say(f"{job.label}: {job.important.in_words()}")
    left = {job.key for job in todo}
    for line in graph_lines(prepared.jobs, prepared.keys, {job.key for job in prepared.jobs} - left):
        say(line)
