"""What a model's config.json says under one of several names."""

from collections.abc import Mapping
from typing import Any

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


def positions_in(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model allows (GPT-2 calls it n_positions); None where it says nothing (Mamba)."""
    for part in (config, config.get("text_config") or {}):
        for key in _POSITIONS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None
