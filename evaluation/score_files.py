"""What the exam reads and leaves in a run folder: arms.json and stage manifests in, one score per arm and exam out.

    runs/<name>/arms.json                         written by the trainer: the arms, and where their weights lie
    runs/<name>/scores/<arm>-<key>.<dtype>-<engine>.parquet    one row per question and mode
    runs/<name>/scores/<arm>-<key>.<dtype>-<engine>.json       document losses and provenance; its presence commits the score

The key hashes weights, questions and settings: whatever changes one of them asks for a new exam, nothing else does. Behind it stand the dtype
and the engine that answered (scores of before 2026-11-28 have neither in their names, only in what they hold).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from console import UserError
from data.ground.contents import MEMORY, names_and_contents
from data.ground.durable import write_text
from data.rows.framing import template_of_stage

SCORE_FORMAT = 3
"""Raised by hand whenever scoring, prompting or the files change."""

SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("set", pa.string()),
        ("mode", pa.string()),
        ("question_id", pa.string()),
        ("doc_id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),  # what is scored: the first line of the output
        ("output", pa.string()),
        ("gold", pa.list_(pa.string())),
        ("em", pa.float64()),
        ("recall", pa.float64()),
        ("f1", pa.float64()),
        ("rouge_l", pa.float64()),
        ("answer_tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),  # of the answer that was given, in nats
        ("gold_logprob", pa.float64()),  # of the first gold answer after the same prompt; test questions
        ("position", pa.string()),  # third of its document in which the answer stands first
        ("context_cut", pa.int64()),  # tokens of context that did not fit
        ("retrieved", pa.list_(pa.string())),  # passages found, best first
        ("gold_rank", pa.int64()),  # of the first passage from the question's own document
        ("swapped", pa.string()),  # the wrong answer that stood in the document (mode conflict)
        ("follows", pa.float64()),  # 1 where that one was given
    ]
)


@dataclass(frozen=True)
class TrainedArm:
    """One entry of arms.json."""

    name: str
    path: str
    """A folder, or a hub id."""
    weights: str
    """weights_sha256 of the stage; for foreign weights what identifies them."""
    revision: str | None
    gone: bool
    """Trained here, but the folder is no longer there."""
    entry: dict[str, Any]
    earlier: str | None = None
    """What stood for foreign weights until 2026-11-28: their files' sizes and times."""

    @property
    def template(self) -> str:
        """How the exam words its questions to this arm (data.wording.templates.exam_template)."""
        return str(self.entry.get("template", "pit"))

    @property
    def begins(self) -> list[list[int]]:
        """[tokens] of what texts begin with, where that is not the bos token alone: for keys."""
        return [self.entry["begins"]] if "begins" in self.entry else []


@dataclass(frozen=True)
class Score:
    rows: list[dict[str, Any]]
    about: dict[str, Any]
    """documents: [{id, tokens, nll}]; weights_sha256, fingerprint, dtype, seconds, …"""


def read_arms(folder: Path, records_sha256: str) -> list[TrainedArm]:
    """The arms of a run in their order. Raises UserError where nothing was trained yet, or on other records than these."""
    arms, records = trained_arms(folder)
    if records != records_sha256:
        where = folder / "arms.json"
        raise UserError(f"{where}: these arms were trained on other records or another seed; repeat the overrides of their training")
    return arms


def trained_arms(folder: Path) -> tuple[list[TrainedArm], str]:
    """The arms of a run in their order, and the hash of the records that they were trained on."""
    path = folder / "arms.json"
    if not path.is_file():
        raise UserError(f"no trained arms in {folder}; run python -m trainer X.yaml first")
    try:
        trained = json.loads(path.read_text(encoding="utf-8"))
        entries, records = trained["arms"], trained["records_sha256"]
        assert isinstance(entries, dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path}: not a list of arms ({error}); run python -m trainer X.yaml again") from None
    return [_trained_arm(folder, name, entry) for name, entry in entries.items()], records


def trained_stages(folder: Path, arms: list[TrainedArm]) -> list[TrainedArm]:
    """Every committed stage within an arm that no arm ends with, once each, named `stage-<key>`."""
    ends = {arm.entry.get("stage") for arm in arms}
    inner = dict.fromkeys(key for arm in arms for key in arm.entry.get("stages") or [] if key not in ends)
    return [_trained_arm(folder, f"stage-{key}", {"hf": f"stages/{key}/hf", "stage": key}) for key in inner]


def stage_totals(folder: Path, arms: list[TrainedArm]) -> dict[str, dict[str, int]]:
    """Steps and tokens of every stage of these arms, from its manifest; a stage without one is left out."""
    found = {}
    for key in dict.fromkeys(key for arm in arms for key in arm.entry.get("stages") or []):
        manifest = folder / "stages" / key / "manifest.json"
        if manifest.is_file():
            totals = json.loads(manifest.read_text(encoding="utf-8")).get("totals", {})
            found[key] = {name: int(totals.get(name, 0)) for name in ("steps", "tokens")}
    return found


def newest_score(folder: Path, arm: TrainedArm) -> Score | None:
    """The last whole score of exactly these weights, whatever its exam; None where there is none."""
    stems = [_stem(path) for path in (folder / "scores").glob(f"{arm.name}-*.json")]
    stems = [stem for stem in stems if re.fullmatch(r"[0-9a-f]{16}(\..+)?", stem.name[len(arm.name) + 1 :])]  # not another arm's
    for stem in sorted(stems, key=lambda stem: _files(stem)[0].stat().st_mtime_ns, reverse=True):
        score = _score(stem)
        if score is not None and score.about.get("weights") in (arm.weights, arm.earlier):
            return score
    return None


def _trained_arm(folder: Path, name: str, entry: dict[str, Any]) -> TrainedArm:
    local = folder / entry["hf"]  # an absolute path stays as it is
    stage = entry.get("stage")
    entry = {"template": template_of_stage(folder / "stages", stage), **entry}
    earlier = None
    manifest = folder / "stages" / stage / "manifest.json" if stage else None
    if manifest is not None and manifest.is_file():
        weights = json.loads(manifest.read_text(encoding="utf-8"))["weights_sha256"]
    elif "weights_sha256" in entry:  # put together from trained arms (trainer/merging/merge.py)
        weights = entry["weights_sha256"]
    elif local.is_dir():
        files = [f for f in sorted(local.iterdir()) if f.suffix in (".safetensors", ".json")]
        hashes = names_and_contents([*files, *sorted(local.glob("*.jinja"))], folder / MEMORY)  # chat templates word what is asked
        weights, earlier = f"contents:{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}", _files_identity(files)
    else:
        weights = f"hub:{entry['hf']}@{entry.get('revision') or ''}"
    is_local = local.is_dir() or bool(stage) or "weights_sha256" in entry or Path(entry["hf"]).is_absolute()
    path = str(local.resolve()) if is_local else entry["hf"]
    return TrainedArm(name, path, weights, entry.get("revision"), is_local and not local.is_dir(), entry, earlier)


def _files_identity(paths: list[Path]) -> str:
    """Names, sizes and times."""
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in paths]
    return f"files:{hashlib.sha256(json.dumps(files).encode()).hexdigest()}"


def closed(rows: Iterable[dict[str, Any]], set_name: str) -> list[dict[str, Any]]:
    """The questions of a set that were asked alone."""
    return asked_in(rows, set_name, "closed")


def asked_in(rows: Iterable[dict[str, Any]], set_name: str, mode: str) -> list[dict[str, Any]]:
    """The questions of a set in one mode; scores of format 1 knew `closed` alone."""
    return [row for row in rows if row["set"] == set_name and (row.get("mode") or "closed") == mode]


def score_stem(folder: Path, arm: TrainedArm, exam_fingerprint: str) -> Path:
    """The path of an arm's scores in this exam, without what answered and without an extension.

    A score of foreign weights under the key of before 2026-11-28 is put under this one.
    """
    new, *old = (_keyed(folder, arm, weights, exam_fingerprint) for weights in (arm.weights, arm.earlier) if weights)
    if old and not _there(new):
        for stem in _there(old[0]):
            for path in reversed(_files(stem)):  # the JSON last
                under_new_name(path.with_name(path.name.replace(old[0].name, new.name, 1)), path)
    return new


def under_new_name(path: Path, earlier: Path | None = None) -> Path:
    """`path`; what lies under the name that an earlier version gave it is put there."""
    if earlier and earlier.is_file() and not path.exists():
        earlier.rename(path)
    return path


def _keyed(folder: Path, arm: TrainedArm, weights: str, exam_fingerprint: str) -> Path:
    facts = [SCORE_FORMAT, weights, exam_fingerprint, *arm.begins]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return folder / "scores" / f"{arm.name}-{key}"


def read_score(stem: Path, engine: str | None = None) -> Score | None:
    """The newest whole score below `stem` (by this engine, if one is named); None where the arm was not examined yet, or not to the end."""
    return next(iter(all_scores(stem, engine)), None)


def is_scored(stem: Path, engine: str | None = None) -> bool:
    """Whether a whole score lies there: what a full disk or a copy that broke off has left is none, and is examined again."""
    return read_score(stem, engine) is not None


def all_scores(stem: Path, engine: str | None = None) -> list[Score]:
    """Every whole score below `stem` (by this engine, if one is named), the newest first."""
    return [score for found in _there(stem) if (score := _score(found)) and engine in (None, answered_by(score))]


def answered_by(score: Score) -> str:
    """`vllm`, `transformers`, or "" where the score does not say."""
    return _engine_of(score.about)


def _engine_of(about: dict[str, Any]) -> str:
    by = str(about.get("engine") or "").lower()
    return next((name for name in ("vllm", "transformers") if by.startswith(name)), "")


def _there(stem: Path) -> list[Path]:
    """Stems of the scores below `stem`, the newest first."""
    return sorted((_stem(path) for path in stem.parent.glob(f"{stem.name}.*json")), key=lambda found: -_files(found)[0].stat().st_mtime_ns)


def _stem(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".json"))


def _score(stem: Path) -> Score | None:
    about, rows = _files(stem)
    try:
        return Score(pq.read_table(rows).to_pylist(), _about(about))
    except _TORN:
        return None


_TORN = (pa.ArrowException, ValueError, OSError)


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".parquet")


def _about(path: Path) -> dict[str, Any]:
    about = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        raise ValueError(f"{path}: no object")
    return about


def write_score(stem: Path, arm: str, seed: int, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Puts both files in place by renames, the JSON last: a reader sees a whole score or none. `about`: with dtype and engine, where known."""
    if how := "-".join(part for part in (str(about.get("dtype") or ""), _engine_of(about)) if part):
        stem = stem.with_name(f"{stem.name}.{how}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{"arm": arm, "seed": seed, **row} for row in rows], schema=SCHEMA)
    draft = stem.with_name(f".{stem.name}.{os.getpid()}")
    pq.write_table(table, draft)
    draft.replace(stem.with_name(stem.name + ".parquet"))
    write_text(stem.with_name(stem.name + ".json"), json.dumps(about, indent=1))
