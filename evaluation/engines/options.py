"""How an engine is to run, and what it gives back: vLLM's and transformers' alike."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

_SEVERAL_THREADS_BYTES = 50_000_000


class Answer(TypedDict):
    token_ids: list[int]  # with the end-of-sequence token where it was said
    text: str  # without special tokens
    finish_reason: str  # "stop" or "length"
    logprob: float  # natural log of the probability of token_ids: how sure the model was


@dataclass(frozen=True, slots=True)
class EngineOptions:
    gpus: int = 0
    """Tensor-parallel GPUs of one node; 0: the CPU build of vLLM."""
    cpus: float = 1
    """What Ray reserves."""
    threads: int = 1
    """On CPUs, of a model of more than a tiny one's size (on those, and on busy cores, two are slower than one); OMP_NUM_THREADS where it is set."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    kv_cache_gib: float = 1.0
    """On CPUs; on GPUs vLLM takes what is free."""
    timeout_s: float = 1800
    """Longest start, and longest call."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM, but transformers for what vLLM lacks, refuses or computes otherwise."""
    engines: int = 1
    """Side by side, each with its own GPUs: models are dealt out to them."""

    def environment(self, model: str) -> dict[str, str]:
        """Of an engine's process, for a model's folder."""
        small = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) < _SEVERAL_THREADS_BYTES
        return {} if self.gpus or small or self.threads == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(self.threads)}
