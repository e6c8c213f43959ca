"""Examines the arms of a run that have no score yet, with one engine for all of them. Needs a running Ray."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import progress, say
from data.corpus.golds import unreachable
from data.records import Document
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import Wording
from evaluation.asking.prompts import Found
from evaluation.config import ExamConfig, RetrievalConfig
from evaluation.engine import Engine, EngineFailure
from evaluation.engines.network import read_network
from evaluation.engines.options import EngineOptions
from evaluation.exam import Exam, tokenise
from evaluation.score_files import SCORE_FORMAT, TrainedArm, closed, score_stem, write_score
from evaluation.sitting import sit

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def engine_options(config: ExamConfig, gpus_in_cluster: int) -> EngineOptions:
    """exam.gpus and exam.dtype with `auto` filled in."""
    gpus = min(1, gpus_in_cluster) if config.gpus is None else config.gpus
    dtype = ("bfloat16" if gpus else "float32") if config.dtype == "auto" else config.dtype
    return EngineOptions(gpus=gpus, dtype=dtype, kv_cache_gib=config.kv_cache_gib, timeout_s=config.timeout_s, backend=config.engine)


@dataclass(frozen=True)
class Knowledge:
    """What was found for each question id, and the store's own account of itself."""

    found: Mapping[str, Sequence[Found]]
    about: Mapping[str, Any]


def look_up(exam: Exam, documents: dict[str, list[Document]], folder: Path, config: RetrievalConfig) -> Knowledge:
    """What the store of these documents (by split) finds for the exam's test questions. Raises RunError, UserError."""
    from evaluation.examining.retrieval import Embedder, open_store

    embedder = Embedder(config)
    store = open_store(folder, documents, config, embedder)
    test = [question for name, question in exam.questions if name == "test"]
    found = store.find([question.question for question in test])
    embedder.release()
    return Knowledge({question.id: hits for question, hits in zip(test, found, strict=True)}, store.about)


def examine(
    todo: list[tuple[TrainedArm, Exam]],
    folder: Path,
    seed: int,
    options: EngineOptions,
    knowledge: Knowledge | None = None,
    examiner: type | None = None,
) -> dict[str, str]:
    """Writes the score of each arm (or stage) in its exam; returns why others have none. What is written stays, whatever happens to the next.

    `knowledge` is needed where an exam needs retrieval; `examiner` stands in for vLLM in tests. Where there are several engines (EngineOptions.engines),
    each takes the next model as it comes free.
    """
    reasons: dict[str, str] = {}
    left = deque(todo)
    with progress() as bars:
        tasks = {arm.name: bars.add_task(arm.name, total=len(exam), note="waiting", start=False) for arm, exam in todo}

        def one_engine() -> None:
            with Engine(options, examiner) as engine:
                while left:
                    try:
                        arm, exam = left.popleft()
                    except IndexError:  # another engine was quicker
                        return
                    try:
                        examine_one(arm, exam, folder, seed, options, knowledge, engine, _Bar(bars, tasks[arm.name]))
                    except EngineFailure as failure:
                        reasons[arm.name] = str(failure)
                        bars.update(tasks[arm.name], note="failed")
                        say(f"{arm.name}: missing: {failure}")

        if options.engines == 1:
            one_engine()
            return reasons
        say(f"{options.engines} engines with {options.gpus} GPU(s) each, {len(todo)} models")
        with ThreadPoolExecutor(options.engines) as engines:
            for done in [engines.submit(one_engine) for _ in range(options.engines)]:
                done.result()
    return reasons


class _Bar:
    def __init__(self, bars: "Progress", task: "TaskID") -> None:
        self._bars, self._task = bars, task

    def start(self, text: str) -> None:
        self._bars.start_task(self._task)
        self._bars.update(self._task, note=text)

    def advance(self, items: int) -> None:
        self._bars.update(self._task, advance=items, note="")


def examine_one(
    arm: TrainedArm,
    exam: Exam,
    folder: Path,
    seed: int,
    options: EngineOptions,
    knowledge: Knowledge | None,
    engine: Engine,
    bar: _Bar | None = None,
) -> None:
    """Writes the score of one arm with an engine that is kept for the next. Raises EngineFailure."""
    start = time.perf_counter()
    if bar:
        bar.start("starting the engine")
    encoder = Encoder(load_tokenizer(arm.path, arm.revision), Wording(arm.template))  # type: ignore[arg-type]
    of = read_network(arm.path, arm.revision)
    paper = tokenise(exam, encoder, of.positions, knowledge.found if knowledge else None, of.short)
    fingerprint = engine.open(arm.path, arm.weights, paper.max_model_len, arm.revision)
    sitting = sit(exam, paper, engine, encoder.eos_id, bar.advance if bar else lambda items: None)
    seconds = time.perf_counter() - start
    about = {
        "format": SCORE_FORMAT,
        "arm": arm.name,
        "hf": arm.entry["hf"],
        "weights": arm.weights,
        "fingerprint": _finite(fingerprint),
        "dtype": options.dtype,
        "engine": engine.by,
        "template": arm.template,
        "gpus": options.gpus,
        "seconds": round(seconds, 3),
        "modes": list(exam.modes),
        "exam": exam.settings(),
        "unreachable": unreachable(
            [question for name, question in exam.questions if name == "test"],
            exam.answer_tokens,
            encoder.gold_length,
        ).as_dict(),
        "retrieval": {**knowledge.about, "k": exam.k} if knowledge and exam.needs_retrieval() else None,
        "documents": [{"id": loss.id, "tokens": loss.tokens, "nll": _finite(loss.nll)} for loss in sitting.losses],
        "side_effects": [{**effect, "logprob": _finite(effect["logprob"])} for effect in sitting.side_effects],
    }
    rows = [{**row, **{key: _finite(row[key]) for key in ("logprob", "gold_logprob")}} for row in sitting.rows]
    write_score(score_stem(folder, arm, exam.fingerprint(arm.template)), arm.name, seed, rows, about)
    test = [row["em"] for row in closed(rows, "test")]
    say(f"{arm.name}: {100 * sum(test) / len(test):.1f} % of {len(test)} exam questions exactly, {seconds:.0f} s")


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold: a diverged model's NaN."""
    return value if value is not None and math.isfinite(value) else None
