"""The folder of the model that an experiment starts from: the user's, the hub's, or a tiny one made now."""

import json
from pathlib import Path
from typing import Any

from data.curriculum.catalogue import Catalogue, digest_records
from trainer.config import ModelConfig
from trainer.jobs.hub import fetch_model, hub_folder
from trainer.store.stages import write_json


def describe_model(folder: Path, model: ModelConfig) -> Path | None:
    """A folder with config and tokenizer of a named model, without its weights; None for a tiny one."""
    if not model.name:
        return None
    if Path(model.name).is_dir():
        return Path(model.name)
    return Path(fetch_model(model, hub_folder(folder, model), weights=False))


def resolve_model(folder: Path, model: ModelConfig, catalogue: Catalogue, seed: int) -> str:
    """A local folder with config, tokenizer and safetensors: the user's, the hub's snapshot, or a tiny one made now."""
    if model.name:
        place = Path(model.name)
        if not place.is_dir():
            place = Path(fetch_model(model, hub_folder(folder, model)))  # beside the run, where every node can read it
        if model.resize_embeddings:
            from trainer.network.resize import resized

            place = resized(place, folder / "model")
        return str(place.resolve())
    from data.wording.tiny_tokenizer import texts_for_tokenizer
    from trainer.network.model import make_tiny_model

    assert model.tiny is not None
    records = {kind: rows for kind, rows in catalogue.records.items() if rows}
    target = folder / "model"
    stamp = {"tiny": model.tiny.model_dump(), "seed": seed, "texts": _fingerprint(records)}
    if not (target / "made.json").exists() or json.loads((target / "made.json").read_text()) != stamp:
        make_tiny_model(target, model.tiny, texts_for_tokenizer(records), seed)
        write_json(target / "made.json", stamp)
    return str(target.resolve())


def _fingerprint(records: dict[Any, Any]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for rows in records.values():
        digest_records(rows, digest)
    return digest.hexdigest()
