"""A model by its name, and what its config.json says under one of several names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from console import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


def positions_in(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model allows (GPT-2 calls it n_positions); None where it says nothing (Mamba)."""
    for part in (config, config.get("text_config") or {}):
        for key in _POSITIONS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


def ropes_in(parameters: Any) -> list[dict[str, Any]]:
    """A config's rotary parameters: one set, or one for each kind of layer; none where it has no such positions."""
    if not isinstance(parameters, dict) or not parameters:
        return []
    return [of for of in parameters.values() if isinstance(of, dict)] or [parameters]


def check_name(place: str, name: str) -> None:
    """UserError where it is neither a folder nor what a model of the hub could be called."""
    path = Path(name)
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise UserError(f"{place}: {name} holds an adapter of peft and no model; merge it into its model, and give that folder")
        if not (path / "config.json").is_file():
            raise UserError(f"{place}: {name} holds no config.json; give the folder with config.json, tokenizer and safetensors")
        return
    if path.exists():
        raise UserError(f"{place}: {name} is a file; give the folder with config.json, tokenizer and safetensors")
    if "://" in name:
        raise UserError(f"{place}: {name} is an address; give the model as OWNER/NAME, or a folder")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{place}: there is no folder {name}, and no model of the hub is called so (OWNER/NAME); mend the path")
