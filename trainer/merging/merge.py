"""Arms that are put together from others once these are trained: runs/<name>/merges/<key>/, entered in arms.json like any arm.

    residuals/<key>/    instruct − base, once for all arms that use it (trainer/merging/residual/artefact.py)
    merges/<key>/       hf/ and manifest.json, put in place last

A key hashes the method and the weights that go in: what is there is not made again, and other weights make another folder.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import RunError, UserError, say
from data.curriculum.arm_config import Merge
from data.ground.contents import MEMORY, names_and_contents, weight_files
from data.rows.framing import begins_otherwise, write_framing
from data.tokens import load_tokenizer
from trainer.merging.mergekit import ABSENT, mergekit_command, run_mergekit
from trainer.merging.residual.artefact import add_residual, make_residual
from trainer.merging.residual.describe import describe_result, description_files
from trainer.merging.residual.kept import ALL, Kept
from trainer.merging.residual.models import LazyWeights, Model, check_settings, fingerprint, open_model
from trainer.merging.residual.saved import open_residual
from trainer.store.fragment_file import sha256_of
from trainer.store.shard_writer import DTYPES
from trainer.store.stages import write_json

MERGE_FORMAT = 1
"""Bump by hand when the same settings would make other weights."""


@dataclass(frozen=True)
class Ingredient:
    """A model that can be put in."""

    name: str
    folder: Path
    identity: str
    """Changes with the weights."""
    described: str
    """Changes with config, tokenizer and chat template."""
    entry: dict[str, Any]
    """Of arms.json; {} for one of `models`."""


def ingredients(run_folder: Path, models: Mapping[str, str]) -> dict[str, Ingredient]:
    """The trained arms of a run and its further models (`models`: name → folder)."""
    arms = json.loads((run_folder / "arms.json").read_text(encoding="utf-8"))["arms"]
    found, memory = {}, run_folder / MEMORY
    for name, entry in arms.items():
        if "merged" not in entry:
            folder = (run_folder / entry["hf"]).resolve()
            manifest = run_folder / "stages" / entry["stage"] / "manifest.json" if entry["stage"] else None
            trained = json.loads(manifest.read_text())["weights_sha256"] if manifest else _files(folder, memory)
            found[name] = Ingredient(name, folder, trained, _described(folder, memory), entry)
    for name, place in models.items():
        found[name] = Ingredient(name, Path(place), _files(Path(place), memory), _described(Path(place), memory), {})
    return found


def merge_arms(run_folder: Path, merges: Mapping[str, Merge], models: Mapping[str, str], seed: int) -> None:
    """Makes what is not there yet and enters it in arms.json. UserError where models do not fit one another.

    An arm that needs mergekit where there is none is left out, with its reason in arms.json; one whose parts are not trained yet, silently.
    """
    if not merges:
        return
    parts = ingredients(run_folder, models)
    arms_file = run_folder / "arms.json"
    listed = json.loads(arms_file.read_text(encoding="utf-8"))
    for folder in (run_folder / "merges", run_folder / "residuals"):
        for draft in folder.glob(".*"):  # of a run that was killed
            shutil.rmtree(draft, ignore_errors=True)
    left_out: dict[str, str] = {}
    for name, merge in merges.items():
        if any(part not in parts for part in (merge.of, merge.instruct, merge.base)):
            continue
        if merge.by_mergekit and mergekit_command() is None:
            left_out[name] = ABSENT
            say(f"{name}: left out: {ABSENT}")
            continue
        try:
            listed["arms"][name] = _merged(run_folder, name, merge, parts, seed)
        except UserError as error:
            raise UserError(f"arms.{name}.merge: {error}") from error
    write_json(arms_file, {**listed, "left_out": left_out})


def _is_made(out: Path) -> bool:
    """A residual's sum brings a manifest of its own, before its framing is written: only what says how long it took has come to its end."""
    try:
        return "seconds" in json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _merged(run_folder: Path, name: str, merge: Merge, parts: Mapping[str, Ingredient], seed: int) -> dict[str, Any]:
    """The arm's entry; makes the model where it is not there."""
    of, instruct, base = (parts[part] for part in (merge.of, merge.instruct, merge.base))
    used = merge.used()
    drawn = seed if merge.method.startswith("dare") else None
    key = fingerprint([MERGE_FORMAT, used, drawn, *((part.identity, part.described) for part in (of, instruct, base))])[:16]
    out = run_folder / "merges" / key
    if not _is_made(out):
        start = time.perf_counter()
        shutil.rmtree(out, ignore_errors=True)
        make = _with_mergekit if merge.by_mergekit else _with_residual
        manifest = make(run_folder, merge, of, instruct, base, out, seed)
        write_framing(out / "hf", of.entry.get("template", "pit"), load_tokenizer(str(out / "hf")))
        write_json(out / "manifest.json", {**manifest, "seconds": time.perf_counter() - start})
        say(f"{name}: {merge.in_words()}")
        for note in manifest["notes"]:
            say(f"  {note}")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    cost = {key: of.entry.get(key, 0) for key in ("steps", "tokens", "seconds")}
    return {
        "hf": f"merges/{key}/hf",
        "stage": None,
        "stages": [],
        **cost,
        "seconds": cost["seconds"] + manifest["seconds"],
        "plan_hash": of.entry.get("plan_hash", ""),
        "plan_hashes": of.entry.get("plan_hashes", []),
        "template": of.entry.get("template", "pit"),
        **begins_otherwise(out / "hf"),
        "weights_sha256": manifest["weights_sha256"],
        "merged": {
            **{role: getattr(merge, role) for role in ("of", "instruct", "base")},
            **used,
            "in_words": merge.in_words(),
            "notes": manifest["notes"],
            "relative_norm": manifest.get("residual", {}).get("relative_norm"),
        },
    }


def _with_residual(
    run_folder: Path, merge: Merge, of: Ingredient, instruct: Ingredient, base: Ingredient, out: Path, seed: int
) -> dict[str, Any]:
    assert isinstance(merge.scale, float | int)
    # It holds the instruct model's tokenizer and chat template too, which the result gets.
    place = (
        run_folder / "residuals" / fingerprint([MERGE_FORMAT, instruct.identity, base.identity, instruct.described, base.described])[:16]
    )
    there = (place / "manifest.json").is_file()
    residual = open_residual(place) if there else make_residual(_open(instruct), _open(base), place)
    keep = Kept(merge.kept, merge.mask) if merge.method == "donor" else ALL
    return add_residual(residual, _open(of), out, merge.scale, merge.new_tokens, keep=keep)


def _with_mergekit(
    run_folder: Path, merge: Merge, of: Ingredient, instruct: Ingredient, base: Ingredient, out: Path, seed: int
) -> dict[str, Any]:
    models = {part.name: _open(part) for part in (of, instruct, base)}
    if beside := sorted(models[of.name].buffers):
        raise UserError(
            f"method: {merge.method}: {beside[0]} belongs to the model and is no parameter: mergekit would round it, or drop a share of it; "
            "use method: residual"
        )
    notes = check_settings(models[of.name].config, models[base.name].config, of.name, base.name)
    notes += check_settings(models[instruct.name].config, models[base.name].config, instruct.name, base.name)
    vocabularies = [model.vocabulary for model in models.values()]
    weights = {of.name: 1.0, instruct.name: merge.scale}
    kinds = [models[of.name].spec(name)[0] for name in models[of.name].names]
    dtype = max((kind for kind in kinds if DTYPES[kind].is_floating_point), key=lambda kind: DTYPES[kind].itemsize)
    gamma = {"gamma": merge.mask} if merge.method == "breadcrumbs" else {}
    config: dict[str, Any] = {
        "merge_method": merge.method,
        "base_model": str(base.folder.resolve()),
        "models": [
            {"model": str(parts.folder.resolve()), "parameters": {"weight": weights[parts.name], "density": merge.kept, **gamma}}
            for parts in (of, instruct)
        ],
        "dtype": "float32",
        "out_dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        config["tokenizer"] = {"source": str(instruct.folder)}
        notes.append("vocabularies differ: matched by mergekit, with the instruct model's tokenizer")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        run_mergekit(config, draft / "hf", seed)
        made = LazyWeights(draft / "hf")
        rows = [made.shape(name)[0] for name in sorted(models[of.name].vocabulary_tensors) if name in made.names()]
        size = rows[0] if rows else models[of.name].vocabulary.rows
        describe_result(draft / "hf", of.folder, instruct.folder, "instruct", size, DTYPES[dtype])
        draft.replace(out)
    except OSError as error:
        raise RunError(f"merging {of.name} with {merge.method}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"format": MERGE_FORMAT, "mergekit": config, "notes": notes, "weights_sha256": fingerprint(_contents(out / "hf"))}


def _open(part: Ingredient) -> Model:
    return open_model(part.name, part.folder)


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def _files(folder: Path, memory: Path) -> str:
    """What is in the weights of a folder that carries no hash, wherever it lies."""
    return fingerprint(names_and_contents(weight_files(folder), memory))


def _described(folder: Path, memory: Path) -> str:
    """The same of config, tokenizer and templates: the sum has them too."""
    return fingerprint(names_and_contents(description_files(folder), memory))
