"""What a checkpoint's config says of its network before any engine starts: its positions, a rope that depends on the length, what vLLM lacks."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from data.ground.model_config import positions_in, ropes_in

# Keys of config.json that change nothing in the network; the engine's dtype is ours to choose.
_INCIDENTAL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")

_SCAN, _GONE, _NEVER = "vLLM's CPU build lacks Mamba's scan", "vLLM has dropped it", "vLLM has never had it"
NOT_IN_VLLM: dict[str, tuple[Literal["CPUs", "anywhere"], str]] = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), ("CPUs", _SCAN)),
    "minimax_m2": ("CPUs", "vLLM's router for CPUs knows sigmoid scores in groups of experts alone"),
    "zamba2": ("CPUs", "vLLM's log-probabilities are others there"),
    **dict.fromkeys(("bamba", "minimax", "mpt"), ("anywhere", _GONE)),
    **dict.fromkeys(
        ("big_bird", "codegen", "cpmant", "gpt_neo", "gpt_neox_japanese", "megatron-bert", "mvp", "openai-gpt", "prophetnet", "reformer",
         "rembert", "roformer", "rwkv", "trocr", "xglm", "xlm", "xlnet"), ("anywhere", _NEVER)
    ),
}  # fmt: skip
"""model_type → where vLLM 0.32 cannot run it, and why. tests/evaluation/engines/test_network.py holds it against the installed vLLM; what is not here
and is refused, or answers otherwise than transformers, is found when it is first opened."""
_ONE_WINDOW = ("qwen2", "qwen3", "qwen2_moe")
"""The first two vLLM refuses; of the third it gives every layer the window, without a word."""


@dataclass(frozen=True, slots=True)
class Network:
    model_type: str = ""
    positions: int | None = None
    """The longest sequence that the config allows; None where it says nothing (Mamba)."""
    short: int | None = None
    """Of a rope with other factors for long sequences (longrope): the longest sequence that has the short ones."""
    some_windows: bool = False
    """Sliding windows in some layers, full attention in others."""

    def not_in_vllm(self, gpus: int) -> str | None:
        """Why vLLM cannot run it here; None as far as is known."""
        if self.some_windows and self.model_type in _ONE_WINDOW:
            return f"vLLM has no {self.model_type} with sliding windows in some layers only"
        where, why = NOT_IN_VLLM.get(self.model_type, (None, ""))
        return f"{self.model_type}: {why}" if where == "anywhere" or (where == "CPUs" and not gpus) else None


def read_network(path: str, revision: str | None = None) -> Network:
    """Of a folder or a hub id. Of files for several media the part that reads text; where transformers does not know the family, the bare JSON."""
    config = _text_config(path, revision)
    ropes = ropes_in(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    long = [rope for rope in ropes if "longrope" in (rope.get("rope_type"), rope.get("type"))]
    original = next((rope["original_max_position_embeddings"] for rope in long if rope.get("original_max_position_embeddings")), None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return Network(
        str(getattr(config, "model_type", "")),
        positions_in(config.to_dict() if hasattr(config, "to_dict") else vars(config)),
        (original or getattr(config, "original_max_position_embeddings", None)) if long else None,
        "sliding_attention" in kinds and len(kinds) > 1,
    )


def _text_config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError):  # a family that transformers does not know, or no config at all: the engine will say why
        file = Path(path) / "config.json"
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return SimpleNamespace(**config, **{k: v for k, v in (config.get("text_config") or {}).items() if k not in config})


def network(path: str) -> str | None:
    """A hash of what a checkpoint folder says about everything but its weights; None for a hub id."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps({k: v for k, v in config.items() if k not in _INCIDENTAL}, sort_keys=True).encode())
    for name in ("tokenizer.json", "generation_config.json"):
        digest.update((folder / name).read_bytes() if (folder / name).is_file() else b"-")
    return digest.hexdigest()
