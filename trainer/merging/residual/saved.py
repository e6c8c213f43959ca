"""A saved residual: its manifest, read as somebody else's file, and what a model was, so that it can be recognised."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from console import UserError
from trainer.merging.residual.models import LazyWeights, Model, fingerprint
from trainer.store.checkpoint import first_bad_file
from trainer.store.fragment_file import sha256_of

RESIDUAL_FORMAT = 1
KIND = "instruction residual"


@dataclass(frozen=True)
class Residual:
    """A saved residual, checked."""

    folder: Path
    manifest: dict[str, Any]
    weights: LazyWeights

    @property
    def name(self) -> str:
        return f"{self.manifest['instruct']['model']} − {self.manifest['base']['model']}"

    @property
    def has_base(self) -> Any:
        """(rows,) bool: the row is instruct − base; else the instruct model's own."""
        vocabulary = self.manifest["vocabulary"]
        known = np.ones(vocabulary["rows"], bool)
        for start, end in vocabulary["instruct_rows"]:
            known[start:end] = False
        return known


def open_residual(folder: Path) -> Residual:
    """UserError where there is none, or where a file is not what its manifest says."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        good = _is_whole(manifest)
    except OSError:
        raise UserError(f"{folder}: no residual lies there (no manifest.json); make one with python -m trainer residual make") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(
            f"{path}: not the manifest of a residual of format {RESIDUAL_FORMAT}; make it again with python -m trainer residual make"
        )
    if bad := [name for name in manifest["files"] if ".." in Path(name).parts or Path(name).is_absolute()]:
        raise UserError(f"{path}: {bad[0]!a} leads out of the folder; make the residual again")
    if bad_file := first_bad_file(folder, manifest["files"]):
        raise UserError(f"{bad_file}; make the residual again")
    weights = LazyWeights(folder / "weights")
    weights.check(str(folder))
    vocabulary = manifest["vocabulary"]
    if any(name not in weights.names() or weights.shape(name)[:1] != [vocabulary["rows"]] for name in vocabulary["tensors"]):
        raise UserError(f"{path}: its vocabulary is not that of the weights beside it; make the residual again")
    return Residual(folder, manifest, weights)


def _is_whole(manifest: Any) -> bool:
    """Whether everything is there that is read of it, as what it must be. KeyError, TypeError and the like where it is not."""
    vocabulary, rows = manifest["vocabulary"], manifest["vocabulary"]["rows"]
    return (
        manifest["kind"] == KIND
        and manifest["format"] == RESIDUAL_FORMAT
        and all({"bytes", "sha256"} <= facts.keys() for facts in manifest["files"].values())
        and all(isinstance(manifest[side]["model"], str) for side in ("instruct", "base"))
        and isinstance(rows, int)
        and all(isinstance(name, str) for name in vocabulary["tensors"])
        and all(0 <= start <= end <= rows for start, end in vocabulary["instruct_rows"])
        and all(isinstance(note, str) for note in manifest["notes"])
        and isinstance(manifest["weights_sha256"], str)
        and isinstance(manifest["relative_norm"], float)
    )


def identity_of(model: Model) -> dict[str, Any]:
    """What a model was, so that it can be recognised: config and tokenizer by fingerprint, weights by the SHA-256 of their files."""
    weights = sorted(model.folder.glob("model*.safetensors"))
    return {
        "model": model.name,
        "config_sha256": fingerprint({k: v for k, v in model.config.items() if k not in ("_name_or_path", "transformers_version")}),
        "vocabulary_sha256": fingerprint(model.vocabulary.row_of),
        "rows": model.vocabulary.rows,
        "files": {path.name: sha256_of(path) for path in weights},
    }


def ranges(chosen: Any) -> list[list[int]]:
    """[[start, end), …] of the true places."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()  # type: ignore[no-any-return]
