"""Whether a trained model's folder is what its stage's manifest says, before it is examined; a damaged one is made again by the trainer."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from console import say
from data.ground.contents import damage_of
from evaluation.score_files import TrainedArm

_AT_ONCE = 8
"""Files hashed at a time: a core each, as much as storage gives."""


def unsound(arms: list[TrainedArm], folder: Path) -> dict[str, str]:
    """Why arms cannot be examined, by name. Reads what is examined once (140 GB at 70B; the engine reads them next, from memory if there is room)."""
    reasons: dict[str, str] = {}
    stages = {arm.name: folder / "stages" / arm.entry["stage"] for arm in arms if arm.entry.get("stage")}
    for stage in dict.fromkeys(stages.values()):
        if why := made_sound(stage):
            reasons |= {name: why for name, of in stages.items() if of == stage}
    return reasons


def made_sound(stage: Path) -> str | None:
    """Makes a damaged hf/ again; why that could not be done, or None."""
    damage = first_damage(stage)
    if not damage:
        return None
    say(f"{damage}: hf/ is made again from the stage's weights")
    done = subprocess.run([sys.executable, "-m", "trainer", "hf", str(stage)], capture_output=True, text=True)
    if not done.returncode:
        return None
    why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{damage}, and hf/ could not be made again: {why}"


def first_damage(stage: Path) -> str | None:
    """The first file of hf/ that is not as listed, with its reason; None also where a stage lists none (before 2026-11-21)."""
    try:
        files = json.loads((stage / "manifest.json").read_text(encoding="utf-8")).get("files", {})
    except (OSError, ValueError):
        return None
    listed = sorted((stage / name, facts) for name, facts in files.items() if name.startswith("hf/"))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return next((why for why in pool.map(lambda entry: damage_of(*entry), listed) if why), None)
