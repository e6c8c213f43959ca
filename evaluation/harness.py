"""lm-evaluation-harness on the arms of a run: what is to be measured, the measuring, and the blocks of report.json.

    runs/<name>/benchmarks/<arm>-<key>.json    one task's result; its key hashes weights, task and settings

Every arm is measured by a process of its own (evaluation/lm_eval_job.py) inside a Ray task that reserves its GPUs, with a time
limit. What fails is missing with its reason, never 0, and is tried again next time.

    benchmarks   {"tasks": {task and metric: {"shots", "arms": {arm: {"mean", "low", "high", "n"}}, "change": {arm: interval of arm − base}}},
                 "missing": {arm: {task: reason}}, "limit", "lm_eval"}
    choices      {"questions", "leakage": {"count", "share"}, "arms": {arm: {"closed" or "retrieval": {form: see choices.judge}}},
                 "missing": {arm: reason}, "findings"}
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from console import UserError, error_line, progress, raised_in, say
from data.ground.contents import MEMORY, contents
from data.ground.durable import write_text
from data.records import ChoiceQuestion, Corpus
from evaluation.asking.choices import FORMS, Asked, ask, findings, judge, predictions
from evaluation.config import ExamConfig
from evaluation.engines.network import Network, read_network
from evaluation.exam import sample
from evaluation.score_files import TrainedArm, under_new_name
from evaluation.scoring.aggregate import as_dict
from evaluation.scoring.statistics import paired_difference

HARNESS_FORMAT = 1
"""Raised by hand whenever prompting or the files change."""
SHOTS = {"mmlu": 5, "mmlu_pro": 5, "gsm8k": 5}
"""Of arXiv 2410.10739; other tasks bring their own number."""
_CHOICES = "choices_"


@dataclass(frozen=True)
class Measures:
    """What is asked of every arm."""

    tasks: list[dict[str, Any]]
    """For lm_eval_job: {"name", "shots", "limit"}, of choices also "data"."""
    identity: dict[str, str]
    """Of each task a hash of everything but the model."""
    asked: dict[str, list[Asked]] = field(default_factory=dict)
    """Questions of each choices task."""


def plan_measures(
    corpus: Corpus, config: ExamConfig, folder: Path, seed: int, passages: Mapping[str, Sequence[str]] | None = None
) -> Measures:
    """The tasks of an experiment: its benchmarks, and multiple choice where the test split holds any.

    passages: of each choice question's id those that were retrieved for it. Raises UserError for a tasks_folder that is not there.
    """
    benchmarks = config.benchmarks
    extra = Path(benchmarks.tasks_folder) if benchmarks.tasks_folder else None
    if extra and not extra.is_dir():
        raise UserError(f"exam.benchmarks.tasks_folder: {extra} is not a folder")
    if unasked := [name for name in benchmarks.shots if name not in benchmarks.tasks]:
        raise UserError(f"exam.benchmarks.shots: {unasked[0]} is not among exam.benchmarks.tasks")
    files = []
    if extra:
        there = [f for f in sorted(extra.rglob("*")) if f.is_file() and f.suffix != ".pyc"]
        hashes = contents(there, folder / MEMORY)
        files = [(str(f.relative_to(extra)), digest) for f, digest in zip(there, hashes, strict=True)]
    tasks = [{"name": n, "shots": benchmarks.shots.get(n, SHOTS.get(n)), "limit": benchmarks.limit} for n in benchmarks.tasks]
    identity = {str(t["name"]): _hash([t, files, benchmarks.chat]) for t in tasks}
    asked: dict[str, list[Asked]] = {}
    for mode, found in (("closed", {}), ("retrieval", passages)):
        questions = asked_choices(corpus, config, seed)
        if not questions or found is None:
            continue
        for form in FORMS:
            name = f"{_CHOICES}{mode}_{form}"
            asked[name] = [ask(q, form, seed, found.get(q.id, ())) for q in questions]
            path = (folder / "benchmarks" / f"{name}.json").resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [{"id": a.id, "prompt": a.prompt, "options": list(a.options), "gold": a.gold} for a in asked[name]]
            path.write_text(json.dumps(rows), encoding="utf-8")
            tasks.append({"name": name, "shots": 0, "limit": None, "data": str(path)})
            identity[name] = _hash(rows)
    return Measures(tasks, identity, asked)


def asked_choices(corpus: Corpus, config: ExamConfig, seed: int) -> list[ChoiceQuestion]:
    """The exam's multiple-choice questions, cut to exam.choices.questions."""
    return sample(corpus.part("test").choices, config.choices.questions, seed)  # type: ignore[type-var]


def pending(arms: Sequence[TrainedArm], measures: Measures, config: ExamConfig, folder: Path, seed: int) -> dict[str, list[str]]:
    """Of each arm the tasks that have no result yet; arms with none are left out."""
    todo = {
        arm.name: [name for name in measures.identity if _read(_path(folder, arm, name, measures, config, seed)) is None]
        for arm in arms
        if not arm.gone
    }
    return {name: tasks for name, tasks in todo.items() if tasks}


def measure(
    arms: Sequence[TrainedArm], todo: Mapping[str, list[str]], measures: Measures, config: ExamConfig, folder: Path, seed: int, gpus: int
) -> dict[str, dict[str, str]]:
    """Runs what is to do, as many arms at once as there are GPUs or cores; returns reasons by arm and task. Needs a running Ray."""
    import ray

    missing: dict[str, dict[str, str]] = {}
    run: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_job)
    waiting = [arm for arm in arms if todo.get(arm.name)]
    at_once = len(waiting) if gpus else os.cpu_count() or 1  # Ray itself holds back what finds no free GPU
    running: dict[Any, TrainedArm] = {}
    with progress() as bars:
        bar = bars.add_task("benchmarks and multiple choice", total=sum(map(len, todo.values())), note="")
        while waiting or running:
            while waiting and len(running) < at_once:
                arm = waiting.pop(0)
                job = job_of(arm, [t for t in measures.tasks if t["name"] in todo[arm.name]], config, seed, gpus)
                running[run.remote(job, config.benchmarks.timeout_s)] = arm
            bars.update(bar, note=", ".join(arm.name for arm in running.values()))
            (done,), _ = ray.wait(list(running))
            arm = running.pop(done)
            try:
                result, failure = ray.get(done)
            except ray.exceptions.RayError as error:
                result, failure = {}, error_line(error)
            for name in todo[arm.name]:
                found = (result.get("tasks") or {}).get(name)
                if found is None or "error" in found:
                    reason = found["error"] if found else failure or "the harness ended without a result"
                    missing.setdefault(arm.name, {})[name] = reason
                    continue
                write_text(_path(folder, arm, name, measures, config, seed), json.dumps(found))
            bars.advance(bar, len(todo[arm.name]))
            for name, reason in missing.get(arm.name, {}).items():
                say(f"{arm.name}: {name}: missing: {reason}")
    return missing


def job_of(arm: TrainedArm, tasks: list[dict[str, Any]], config: ExamConfig, seed: int, gpus: int) -> dict[str, Any]:
    benchmarks, of = config.benchmarks, read_network(arm.path, arm.revision)
    return {
        "model": arm.path,
        "revision": arm.revision,
        "backend": _backend(config, gpus, of),
        "dtype": _dtype(config, gpus),
        "gpus": gpus,
        "kv_cache_gib": config.kv_cache_gib,
        # a longer neighbour's padding would give short ones the rope's long factors
        "batch_items": 1 if of.short else benchmarks.batch_items,
        "tasks": tasks,
        "tasks_folder": str(Path(benchmarks.tasks_folder).resolve()) if benchmarks.tasks_folder else None,
        "offline": benchmarks.offline,
        "chat": benchmarks.chat,
        "seed": seed,
    }


def run_job(job: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], str | None]:
    """(what the harness measured until it ended or was stopped, why it did not come to its end)."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        order, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        order.write_text(json.dumps(job), encoding="utf-8")
        with (Path(scratch) / "log").open("w+", encoding="utf-8", errors="replace") as log:
            command = [sys.executable, "-m", "evaluation.lm_eval_job", str(order), str(result)]
            child = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            failure = None
            try:
                if child.wait(timeout_s):
                    log.seek(0)
                    said = log.read()
                    reason = raised_in(said) or (said.strip() or "no output").splitlines()[-1]
                    failure = f"lm-eval ended with exit code {child.returncode}: {reason}"[:300]
            except subprocess.TimeoutExpired:
                failure = f"not done within {timeout_s:g} s"
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            log.seek(0)
            print(log.read()[-20000:], flush=True)
        measured = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    return measured, failure


def blocks(
    arms: Sequence[TrainedArm],
    measures: Measures,
    missing: Mapping[str, Mapping[str, str]],
    corpus: Corpus,
    config: ExamConfig,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """`benchmarks` and `choices` of report.json, each only where it was asked for."""
    found = {
        arm.name: {
            name: result for name in measures.identity if (result := _read(_path(folder, arm, name, measures, config, seed))) is not None
        }
        for arm in arms
    }
    reasons = {
        arm.name: {
            name: missing.get(arm.name, {}).get(name, "its weights are gone" if arm.gone else "not measured yet")
            for name in measures.identity
            if name not in found[arm.name]
        }
        for arm in arms
    }
    made: dict[str, Any] = {}
    if config.benchmarks.tasks:
        made["benchmarks"] = _benchmarks(found, reasons, config, seed)
    if measures.asked:
        made["choices"] = _choices(found, reasons, measures, corpus, config, seed)
    return made


def _benchmarks(found: Mapping[str, Any], reasons: Mapping[str, Mapping[str, str]], config: ExamConfig, seed: int) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for arm, results in found.items():
        for name in (n for n in config.benchmarks.tasks if n in results):
            for metric in results[name]["metrics"]:
                how = "" if metric["filter"] == "none" else f" ({metric['filter']})"
                block = tasks.setdefault(f"{name} {metric['metric']}{how}", {"shots": results[name]["shots"], "arms": {}, "change": {}})
                samples = results[name]["samples"].get(f"{metric['metric']},{metric['filter']}") or {}
                block["arms"][arm] = _score(metric, samples)
                before = (found.get("base") or {}).get(name)
                if before and arm != "base":
                    old = before["samples"].get(f"{metric['metric']},{metric['filter']}") or {}
                    block["change"][arm] = _change(samples, old, config.resamples, seed)
    short = {arm: {n: why for n, why in of.items() if not n.startswith(_CHOICES)} for arm, of in reasons.items()}
    return {
        "tasks": tasks,
        "missing": {arm: of for arm, of in short.items() if of},
        "limit": config.benchmarks.limit,
        "lm_eval": metadata.version("lm_eval"),
    }


def _score(metric: Mapping[str, Any], samples: Mapping[str, float]) -> dict[str, Any]:
    """lm-eval's own value; ± 1.96 of its standard errors where it gives one."""
    value, error = metric["value"], metric["stderr"]
    ends = {} if error is None else {"low": max(0.0, value - 1.96 * error), "high": min(1.0, value + 1.96 * error)}
    return {"mean": value, **ends, "n": len(samples) or None}


def _change(after: Mapping[str, float], before: Mapping[str, float], resamples: int, seed: int) -> dict[str, float] | None:
    """Paired over the same questions; None where a metric has no score per question."""
    both = [key for key in after if key in before]
    if not both:
        return None
    return as_dict(paired_difference([after[k] for k in both], [before[k] for k in both], both, resamples, seed))


def _choices(
    found: Mapping[str, Any], reasons: Mapping[str, Mapping[str, str]], measures: Measures, corpus: Corpus, config: ExamConfig, seed: int
) -> dict[str, Any]:
    ids = {one.id for of in measures.asked.values() for one in of}
    overlap = corpus.overlap
    leaked = set(overlap.question_ids) & ids if overlap and overlap.policy != "drop_from_train" else set()
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, results in found.items():
        for name, asked in measures.asked.items():
            if name not in results:
                continue
            mode, form = name.removeprefix(_CHOICES).split("_")
            predicted = predictions(asked, results[name]["likelihoods"], form)  # type: ignore[arg-type]
            arms.setdefault(arm, {}).setdefault(mode, {})[form] = judge(asked, predicted, form, leaked, config.resamples, seed)  # type: ignore[arg-type]
    unread = {arm: next((why for n, why in of.items() if n.startswith(_CHOICES)), None) for arm, of in reasons.items()}
    block: dict[str, Any] = {
        "questions": len(ids),
        "leakage": {"count": len(leaked), "share": len(leaked) / len(ids)},
        "arms": arms,
        "missing": {arm: why for arm, why in unread.items() if why},
    }
    return {**block, "findings": findings(block, config.choices)}


def _path(folder: Path, arm: TrainedArm, task: str, measures: Measures, config: ExamConfig, seed: int) -> Path:
    engine = [config.benchmarks.backend, config.dtype, metadata.version("lm_eval")]
    keys = [_hash([HARNESS_FORMAT, of, measures.identity[task], engine, seed, *arm.begins])[:16] for of in (arm.weights, arm.earlier) if of]
    return under_new_name(*(folder / "benchmarks" / f"{arm.name}-{key}.json" for key in keys))


def _backend(config: ExamConfig, gpus: int, of: Network) -> str:
    """auto: vLLM on GPUs, unless the exam is to do without it, vLLM lacks the family, or its one engine has one set of a rope's factors."""
    without = config.engine == "transformers" or of.short or of.not_in_vllm(gpus)
    return ("vllm" if gpus and not without else "hf") if config.benchmarks.backend == "auto" else config.benchmarks.backend


def _dtype(config: ExamConfig, gpus: int) -> str:
    return ("bfloat16" if gpus else "float32") if config.dtype == "auto" else config.dtype


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
