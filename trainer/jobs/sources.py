"""Which data a run was begun with: a resume over other data would go on with one half of an old plan and one of a new."""

import json
from pathlib import Path
from typing import Any

from console import UserError
from data.config import DataConfig
from data.ground.contents import MEMORY, contents
from trainer.config import ModelConfig
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import write_json


def refuse_another_experiment(folder: Path, config: DataConfig, model: ModelConfig) -> None:
    """UserError where arms of another experiment lie here: none of its files is one of ours, by place or content, or its model has another name.

    arms.json and the report would be overwritten. The same files with other rows, other arms or other rates are the same experiment, edited.
    """
    arms, sources = folder / "arms.json", folder / "sources.json"
    if not arms.is_file():
        return
    known = json.loads(arms.read_text())
    remedy = "give this one another name=…, or move that folder away"
    ours, theirs = name_of(model), known.get("model")
    if theirs is not None and ours != theirs:
        raise UserError(f"{folder}: holds the arms of an experiment with another model ({theirs}, here {ours}); {remedy}")
    before: dict[str, Any] = json.loads(sources.read_text()) if sources.is_file() else {}
    now = _files(config)
    if not sources.is_file() or not (before or now) or any(str(file) in before for file in now):
        return
    theirs_sha256 = {facts["sha256"] for facts in before.values()}
    if not theirs_sha256 & set(contents(now, folder / MEMORY)):
        what = next(iter(before), "made biographies")
        raise UserError(f"{folder}: holds the arms of an experiment with other data ({what}); {remedy}")


def name_of(model: ModelConfig) -> str:
    """Of a folder its last part: it may be moved."""
    return Path(model.name).name if model.name else "tiny"


def refuse_changed_data(folder: Path, config: DataConfig, keys: set[str]) -> None:
    """UserError when a stage was begun and not finished, belongs to none of `keys` any more, and a source file is not what it was.

    Writes down the sources as they are now. A finished stage is no obstacle: changed data make other stages beside it.
    """
    path = folder / "sources.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    files = _files(config)
    now = {str(file): {"sha256": digest} for file, digest in zip(files, contents(files, folder / MEMORY), strict=True)}
    begun = [stage for stage in (folder / "stages").glob("*") if not (stage / "manifest.json").exists() and checkpoints(stage)]
    if [stage for stage in begun if stage.name not in keys]:
        changed = [name for name, facts in before.items() if now.get(name, {}).get("sha256") != facts["sha256"]]
        if changed:
            raise UserError(
                f"{changed[0]}: changed since this run began, and a stage of it is unfinished: put the file back to go on, give another "
                f"name=… to begin anew, or drop the unfinished stage with `python -m trainer gc X.yaml --unfinished --delete`"
            )
    write_json(path, now)


def _files(config: DataConfig) -> list[Path]:
    root = Path(config.root or ".")
    found: list[Path] = []
    for source in config.sources:
        place = root / source.path
        found += sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place] if place.is_file() else []
    return found
