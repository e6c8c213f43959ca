"""The stage store: runs/<name>/stages/<key>/. A stage that is committed is never trained again; what arms share, they share by key."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from console import RunError
from data.config import Stage
from data.ground.durable import sync as sync
from data.ground.durable import write_json as write_json
from failpoints import hit
from trainer.config import TrainerConfig

STAGE_FORMAT = 2
"""Bump by hand when the same settings would train to other weights."""

# What of a stage and the trainer changes the weights. The plan's hash stands for mixture, order, epochs and batch.
_STAGE_KEYS = {"rate", "schedule", "final_rate_share", "warmup_steps", "loss"}
# Settings that came later count only where they are not at their default: what is trained stays trained.
_LATER_STAGE_KEYS = {"decay_share", "loss_on", "other_weight", "template", "prefix", "input_noise", "sentence_shuffle"}
_LATER_STAGE_KEYS |= {"freeze_share", "freeze_round", "warmup_share", "adapter", "wordings", "teach", "anchor", "passages"}
_TRAINER_KEYS = {"clip", "betas", "weight_decay"}
_LATER_TRAINER_KEYS = {"fp8"}


def stage_key(
    parent: str,
    stage: Stage,
    plan_sha256: str,
    tokens_sha256: str,
    trainer: TrainerConfig,
    precision: str,
    capacity: int | None,
    seed: int,
    aids_sha256: str | None = None,
    beside: dict[str, str] | None = None,
) -> str:
    """Identity of a trained stage: 16 hexadecimal digits. World size, ZeRO stage and arm are not part of it.

    `parent`: key of the stage before, or the initial model's identity. `capacity`: most tokens of an item, where that cuts one; else None.
    `aids_sha256`: of what the stage's aids read beside the tokens (TokenStore.aids_sha256); None: they read nothing, or as until 2026-11-28, when it
    was in no key.
    `beside`: identities of what else it reads, where it does: its teacher's store, the passages before its questions.
    """
    libraries = ("torch", "deepspeed", "transformers", *(("peft",) if stage.adapter else ()))
    facts = {
        "format": STAGE_FORMAT,
        "parent": parent,
        "stage": stage_facts(stage),
        "plan": plan_sha256,
        "tokens": tokens_sha256,
        "trainer": {
            **trainer.model_dump(mode="json", include=_TRAINER_KEYS),
            **trainer.model_dump(mode="json", include=_LATER_TRAINER_KEYS, exclude_defaults=True),
        },
        "precision": precision,
        "capacity": capacity,
        "seed": seed,
        "versions": {name: version(name) for name in libraries},
    }
    if beside:
        facts |= beside
    if stage.adapter and any("dropout" in name and value for name, value in stage.adapter.settings().items()):
        facts["draws"] = "by micro-step and rank"  # before 2026-11-28 once a stage: other weights
    if stage.adapter and stage.adapter.type == "ia3" and trainer.weight_decay:
        facts["decay"] = "none of scales"  # before 2026-11-29 they were decayed towards 0: other weights
    if aids_sha256:
        facts["aids"] = aids_sha256
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def stage_facts(stage: Stage) -> dict[str, Any]:
    """What of a stage, besides its plan, decides which weights come out."""
    later = stage.model_dump(mode="json", include=_LATER_STAGE_KEYS, exclude_defaults=True)
    if stage.schedule != "wsd":
        later.pop("decay_share", None)
    return {**stage.model_dump(mode="json", include=_STAGE_KEYS), **later}


class StageStore:
    def __init__(self, run_folder: Path) -> None:
        self.root = run_folder / "stages"

    def folder(self, key: str) -> Path:
        return self.root / key

    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a committed stage, else None. RunError where it is torn: the weights beside it may be whole, so nothing is done to them."""
        path = self.folder(key) / "manifest.json"
        if not path.exists():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict):
            raise RunError(f"{path}: torn (a full disk?); move {path.parent} away, and the stage is trained again")
        return manifest

    def clear_partial(self, key: str) -> None:
        """Removes what an interrupted try left, but for its checkpoints; a committed stage is never touched."""
        if self.manifest(key) is None:
            for part in ("weights", "hf", "adapter", "adapter-fragments"):
                shutil.rmtree(self.folder(key) / part, ignore_errors=True)
            self.folder(key).mkdir(parents=True, exist_ok=True)

    def commit(self, key: str, manifest: dict[str, Any]) -> None:
        """Puts the manifest in place last, by rename: from then on the stage exists, and its checkpoints are not needed."""
        hit("stage.before_manifest")
        write_json(self.folder(key) / "manifest.json", manifest)
        hit("stage.after_manifest")
        shutil.rmtree(self.folder(key) / "checkpoints", ignore_errors=True)

    def tidy(self) -> None:
        """Removes checkpoints of committed stages, which a kill just after the commit leaves."""
        for manifest in self.root.glob("*/manifest.json"):
            shutil.rmtree(manifest.parent / "checkpoints", ignore_errors=True)

    def uncommit(self, key: str) -> None:
        """Takes a damaged stage back: the next run trains it again. What depends on it and is committed stays."""
        (self.folder(key) / "manifest.json").replace(self.folder(key) / "manifest.corrupt.json")
