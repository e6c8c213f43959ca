"""From an experiment's values to jobs: records, tokens, plans, keys. Everything before the first worker starts."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from console import UserError
from data.catalogue import Catalogue
from data.config import Stage
from data.plan import Plan
from data.templates import wording_of
from data.tokens import TokenStore
from trainer.config import ModelConfig, TrainerConfig
from trainer.store import stage_key


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


def initial_identity(model: ModelConfig, seed: int, tokens_sha256: str) -> str:
    """What stands for the initial weights in the first stage's key. A tiny model follows from its settings, seed and texts."""
    facts = {"model": model.model_dump(mode="json"), **({"seed": seed, "tokens": tokens_sha256} if model.tiny else {})}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def make_jobs(
    arms: dict[str, list[Stage]],
    plans: dict[str, list[Plan]],
    store: TokenStore,
    trainer: TrainerConfig,
    precision: str,
    capacity: int,
    seed: int,
    initial: str,
    plan_folder: Path,
) -> tuple[list[Job], dict[str, list[str]]]:
    """Every distinct stage once, parents first, and each arm as its list of keys. Plans are written to `plan_folder`."""
    jobs: dict[str, Job] = {}
    keys: dict[str, list[str]] = {}
    plan_folder.mkdir(parents=True, exist_ok=True)
    for arm, stages in arms.items():
        parent: str | None = None
        keys[arm] = []
        for n, (stage, plan) in enumerate(zip(stages, plans[arm], strict=True)):
            worded = store.worded(wording_of(stage))
            cut = capacity if int(worded.lengths.max(initial=0)) > capacity else None
            key = stage_key(parent or initial, stage, plan.sha256, worded.sha256, trainer, precision, cut, seed)
            if key not in jobs:
                path = plan_folder / f"{plan.sha256[:16]}.npz"
                if not path.exists():
                    plan.save(path)
                label = f"{arm} {n + 1}/{len(stages)}: {' + '.join(stage.mix.kinds())}"
                jobs[key] = Job(key, parent, label, stage, plan.num_steps, str(path.resolve()), plan.sha256, capacity)
            keys[arm].append(key)
            parent = key
    return list(jobs.values()), keys


def check_lengths(store: TokenStore, catalogue: Catalogue, capacity: int, long_documents: str) -> int:
    """Refuses items that no row can hold; returns how many documents will be split over rows."""
    long = np.flatnonzero(store.lengths > capacity)
    for item in long:
        kind = catalogue.kind_of(int(item))
        if kind.endswith("questions") or long_documents == "refuse":
            what = "question" if kind.endswith("questions") else "document"
            raise UserError(
                f"{what} {catalogue.ids[item]} has {store.lengths[item]} tokens and a row holds {capacity}: raise trainer.row_tokens, "
                f"or take it out{'' if what == 'question' else ', or set trainer.long_documents=split'}"
            )
    return len(long)


def job_dict(job: Job) -> dict[str, Any]:
    """For the manifest: plain values."""
    return {**asdict(job), "stage": job.stage.model_dump(mode="json")}
