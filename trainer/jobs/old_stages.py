"""Stages that a version before 2026-11-28 trained under ZeRO-3 in bf16: their rotary frequencies were rounded to bf16, so they are another network's than the one exported."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console import say
from data.ground.model_config import ropes_in
from trainer.jobs.prepare import Job
from trainer.network.text_config import text_config
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore

EXACT = {"exact_buffers": True}
"""In manifests of stages and checkpoints since then."""
SET_ASIDE = "rounded-stages"
_EXACT_ROPES = {"llama3"}
"""Kinds of rotary frequencies that DeepSpeed 0.19.8 computed in fp32 all the same."""


def is_rounded(manifest: dict[str, Any], model_folder: str) -> bool:
    """Whether what this manifest of a stage or checkpoint lists was trained with rounded frequencies."""
    old = manifest.get("zero_stage") == 3 and manifest.get("precision") == "bf16" and not manifest.get("exact_buffers")
    return old and _ropes(model_folder) - _EXACT_ROPES != set()


def _ropes(model_folder: str) -> set[str]:
    """Kinds of rotary frequencies that the model has; none where it has no positions of that sort."""
    return {str(rope.get("rope_type", "default")) for rope in ropes_in(getattr(text_config(Path(model_folder)), "rope_parameters", None))}


def set_aside_rounded(store: StageStore, jobs: Sequence[Job], model_folder: str, keep: bool) -> None:
    """Such stages, and what was trained from them, are moved to rounded-stages/ and trained anew; `keep`: they stay as they are. Says so in one line either way."""
    found: list[str] = []
    for job in jobs:  # parents first
        manifests = [store.manifest(job.key)] if store.manifest(job.key) else [c.manifest for c in checkpoints(store.folder(job.key))[:1]]
        if not manifests:
            continue
        if job.parent in found or any(is_rounded(manifest or {}, job.model_folder or model_folder) for manifest in manifests):
            found.append(job.key)
    if not found:
        return
    what = f"{len(found)} of {len(jobs)} stages were trained under ZeRO-3 in bf16 by a version that rounded rotary frequencies, or from such a stage (docs/models.md)"
    if keep:
        say(f"warning: {what}; they are used as they are, as trainer.keep_rounded_stages says: trained as one network, examined as another")
        return
    for key in found:
        target = store.root.parent / SET_ASIDE / key
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        store.folder(key).replace(target)
    say(f"{what}: they are trained anew, and kept in {SET_ASIDE}/; trainer.keep_rounded_stages=true uses them instead")


def warn_of_rounded_parent(stage: Path, model_folder: str, text: str) -> None:
    """`base: runs/…`: another run's stages are not ours to train anew."""
    if is_rounded(json.loads((stage / "manifest.json").read_text()), model_folder):
        say(
            f"warning: base: {text} was trained under ZeRO-3 in bf16 by a version that rounded rotary frequencies (docs/models.md); train it anew"
        )
