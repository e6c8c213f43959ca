"""hf/ of a committed stage, made again from the stage's fp32 weights: python -m trainer hf runs/NAME/stages/KEY"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from console import RunError, UserError, say
from trainer.store.checkpoint import first_bad_file, set_aside
from trainer.store.stages import write_json


def remake_command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m trainer hf", description="Makes hf/ of a committed stage again, from the stage's own weights."
    )
    parser.add_argument("stage", type=Path, help="runs/NAME/stages/KEY")
    parser.add_argument(
        "--model", type=Path, help="folder of the model that was trained (config, tokenizer); default: the one that the stage names"
    )
    arguments = parser.parse_args(argv)
    say(f"made again: {remake(arguments.stage.resolve(), arguments.model)}")
    return 0


def remake(stage: Path, model: Path | None = None) -> Path:
    """The new hf/, put in place when it is whole; the old one stays as corrupt-hf. UserError, RunError."""
    path = stage / "manifest.json"
    if not path.is_file():
        raise UserError(f"{stage}: no committed stage lies there (no manifest.json)")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    weights = {name: facts for name, facts in manifest.get("files", {}).items() if name.startswith("weights/")}
    if bad := first_bad_file(stage, weights):
        raise RunError(f"{bad}: nothing is left to make hf/ from; remove the stage's folder and train it again")
    from data.config import Stage
    from data.rows.framing import template_of_stage
    from trainer.export.export import dtype_of, export_model
    from trainer.store.weights import FragmentWeights

    folder = _model_folder(stage, manifest, model)
    job = manifest["job"]
    template = template_of_stage(stage.parent, job["parent"], Stage.model_validate(job["stage"]), folder)
    draft = stage / f".hf.{os.getpid()}"
    try:
        held = FragmentWeights(stage / "weights", manifest["shapes"], manifest["world_size"])
        sha256, files = export_model(held, str(folder), draft, dtype_of(manifest["precision"]), template, ranks=manifest["world_size"])
        if (stage / "hf").exists():
            set_aside(stage / "hf")
        draft.replace(stage / "hf")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    others = {name: facts for name, facts in manifest.get("files", {}).items() if not name.startswith("hf/")}
    if (listed := others | {f"hf/{name}": facts for name, facts in files.items()}) != manifest.get("files"):
        # Of an older version, which cut or described it otherwise: the weights are the same, and keep the name that scores know them by.
        write_json(path, {**manifest, "files": listed, "hf_sha256": sha256})
    return stage / "hf"


def _model_folder(stage: Path, manifest: dict[str, Any], given: Path | None) -> Path:
    run = stage.parent.parent
    named = manifest.get("model_folder")
    found = [given] if given else [(stage / named).resolve()] if named else [run / "model-begun", run / "model"]
    for folder in found:
        if folder and (folder / "config.json").is_file():
            return folder
    raise UserError(f"{stage}: the model that was trained is not at {found[0]}; name its folder with --model DIR")
