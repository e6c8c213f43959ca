"""vLLM behind two small classes: `Examiner` runs in a Ray actor (evaluation/generate.py stands in for it), `Engine` on the driver. Beside data/build/local_model.py the only file that imports vllm."""

import contextlib
import hashlib
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypedDict

import ray
from ray.exceptions import GetTimeoutError, RayError

from console import RunError, say

log = logging.getLogger(__name__)

_BATCHED_TOKENS = 2048
"""Tokens a forward pass: with prompt log-probabilities the logits of all of them are held at once (2048 × V × 4 bytes)."""
_PROBE_TOKENS = 16
# Keys of config.json that change nothing in the network; the engine's dtype is ours to choose.
_INCIDENTAL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


_NOT_ON_CPUS = {"mamba", "falcon_mamba", "bamba", "falcon_h1", "jamba", "zamba2", "granitemoehybrid", "nemotron_h"}
"""model_type: of Mamba vLLM's CPU build lacks the scan (tests/models shows Mamba-2 works); hybrids were not tried in it to the end."""


class EngineFailure(RunError):
    """The engine crashed or hung twice on one checkpoint: nothing is known about it."""


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
    """What Ray reserves. The threads of the CPU build are OMP_NUM_THREADS: on tiny models and busy cores two are slower than one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    kv_cache_gib: float = 1.0
    """On CPUs; on GPUs vLLM takes what is free."""
    timeout_s: float = 1800
    """Longest start, and longest call."""
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    """auto: vLLM, but on CPUs transformers for families that it cannot run there."""


class Examiner:
    """One vLLM engine in one process. Greedy decoding, so the same weights give the same answers."""

    def __init__(self, path: str, revision: str | None, max_model_len: int, options: EngineOptions) -> None:
        # One process: vLLM's own child would outlive a killed actor, and on CPUs its threads fight for the same cores.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM

        settings: dict[str, Any] = (
            {"tensor_parallel_size": options.gpus}
            if options.gpus
            else {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
            }
        )
        self._llm = LLM(
            model=path,
            revision=revision,
            tokenizer_revision=revision,
            dtype=options.dtype,
            max_model_len=max_model_len,
            max_num_batched_tokens=_BATCHED_TOKENS,
            seed=0,
            trust_remote_code=False,
            load_format="safetensors",  # "auto" would fall back on pickled weights
            **settings,
        )
        text_config = self._llm.llm_engine.model_config.hf_text_config
        self._tied = bool(getattr(text_config, "tie_word_embeddings", False))
        self._vocab_size = int(text_config.vocab_size)
        self._network = network(path)
        self._loads = 0

    def load(self, path: str) -> bool:
        """Puts the weights of another checkpoint into the running engine; False where only a new engine is right.

        That is: another network or tokenizer, a hub id, or tied embeddings, for which vLLM 0.32 on CPUs reloads without an
        error and goes on with the old output layer (tests/evaluation/test_engine.py shows it).
        """
        if self._tied or self._network is None or network(path) != self._network:
            return False
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        self._loads += 1
        self._forget()
        return True

    def _forget(self) -> None:
        """Frees what was cached of prompts under the old weights; should any stay, `_salt` keeps it from being found."""
        self._llm.reset_prefix_cache()

    def _salt(self) -> str:
        """Part of the cache key of every prompt: keys and values of other weights never match."""
        return f"weights {self._loads}"

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        """Greedy continuations of token prompts, up to and including `eos_id` or `max_tokens` tokens."""
        from vllm import SamplingParams

        # logprobs=0: of each token its own log-probability, and no runners-up.
        greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop_token_ids=[eos_id], logprobs=0)
        said = [output.outputs[0] for output in self._generate(prompts, greedy)]
        return [
            Answer(token_ids=list(s.token_ids), text=s.text, finish_reason=s.finish_reason or "", logprob=float(s.cumulative_logprob))
            for s in said
        ]

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        """Natural log of the probability of each sequence's tokens from `starts` (≥ 1; default: 1) on, given those before; 0.0 for none.

        A sequence must be shorter than max_model_len: vLLM always decodes one token more.
        """
        from vllm import SamplingParams

        # prompt_logprobs=0: of each prompt token its own log-probability, and no runners-up. The first has none.
        score = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        positions = [output.prompt_logprobs for output in self._generate(sequences, score)]
        return [
            math.fsum(logprobs[token].logprob for token, logprobs in zip(sequence[start:], own[start:], strict=True))
            for sequence, own, start in zip(sequences, positions, starts or [1] * len(sequences), strict=True)
        ]

    def _generate(self, prompts: list[list[int]], sampling: Any) -> list[Any]:
        from vllm.inputs import TokensPrompt

        salt = self._salt()
        return self._llm.generate([TokensPrompt(prompt_token_ids=ids, cache_salt=salt) for ids in prompts], sampling, use_tqdm=False)

    def probe(self) -> float:
        """Log-likelihood of a fixed sequence: a fingerprint of the weights in use, whatever was asked to be loaded."""
        return self.log_likelihoods([[i % self._vocab_size for i in range(_PROBE_TOKENS)]])[0]


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


def choose_examiner(path: str, revision: str | None, options: EngineOptions) -> tuple[type, str]:
    """(class, why, for people) for the model at `path`, a folder or a hub id."""
    from evaluation.generate import Generator

    if options.backend == "transformers":
        return Generator, "transformers' generate, as exam.engine says"
    if options.backend == "auto" and not options.gpus and (model_type := _model_type(path, revision)) in _NOT_ON_CPUS:
        return Generator, f"transformers' generate: vLLM has no CPU support for {model_type}"
    return Examiner, "vLLM"


def _model_type(path: str, revision: str | None) -> str:
    """ "" where config.json cannot be had: the engine will say why."""
    folder = Path(path)
    try:
        if folder.is_dir():
            return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", ""))
        from transformers import AutoConfig

        return str(AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).model_type)
    except (OSError, ValueError):
        return ""


class Engine:
    """An Examiner that is replaced when it crashes, hangs, or keeps old weights. Needs a running Ray; use it as a context manager.

    Each checkpoint may cost one replacement; a second failure raises EngineFailure with the cause.
    """

    def __init__(self, options: EngineOptions, examiner: type | None = None) -> None:
        """`examiner`: None: by the model that is opened (choose_examiner)."""
        self._options, self._examiner = options, examiner
        self.by = ""
        """What answers, and why, for people."""
        self._actor: Any = None
        self._checkpoint: tuple[str, str | None, int] = ("", None, 0)
        self._weights = ""
        self._fingerprint: float | None = None
        self._replacements_left = 0

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill()

    def open(self, path: str, weights: str, max_model_len: int, revision: str | None = None) -> float:
        """Makes the checkpoint at `path` (folder or hub id) the one that answers; returns its fingerprint.

        `weights` names them (a hash): a swap to other weights that leaves the fingerprint the same was none, and the
        engine is built anew.
        """
        self._replacements_left = 1
        fits = self._actor is not None and max_model_len <= self._checkpoint[2]
        before, known = self._fingerprint, self._weights
        self._checkpoint = (path, revision, self._checkpoint[2] if fits else max_model_len)
        swapped = fits and self._swap()
        if not swapped:
            self._kill()
        self._fingerprint = self._call("probe")
        if swapped and weights != known and self._fingerprint == before:
            log.warning("%s: same fingerprint as the weights before it: a new engine is built", path)
            self._kill()
            self._fingerprint = self._call("probe")
        self._weights = weights
        return self._fingerprint

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        """See Examiner.answer. Raises EngineFailure."""
        return self._call("answer", prompts, max_tokens, eos_id)

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        """See Examiner.log_likelihoods. Raises EngineFailure."""
        return self._call("log_likelihoods", sequences, starts)

    def _swap(self) -> bool:
        """Whether the running engine took the weights; a failure means no."""
        try:
            return bool(ray.get(self._actor.load.remote(self._checkpoint[0]), timeout=self._options.timeout_s))
        except RayError as error:
            log.warning("swapping weights failed: %s", _cause(error))
            return False

    def _call(self, method: str, *args: Any) -> Any:
        """One call with a time-out; builds the engine where there is none, once more where it fails."""
        while True:
            try:
                if self._actor is None:
                    self._actor = self._actor_class().remote(*self._checkpoint, self._options)
                return ray.get(getattr(self._actor, method).remote(*args), timeout=self._options.timeout_s)
            except RayError as error:
                self._kill()
                cause = self._no_reply() if isinstance(error, GetTimeoutError) else _cause(error)
                if not self._replacements_left:
                    raise EngineFailure(f"{self._checkpoint[0]}: {cause}") from None
                self._replacements_left -= 1
                log.warning("engine for %s failed (%s); trying once more", self._checkpoint[0], cause)

    def _actor_class(self) -> Any:
        examiner, why = (self._examiner, "") if self._examiner else choose_examiner(*self._checkpoint[:2], self._options)
        if why != self.by:
            self.by = why
            say(f"examined by {why}")
        return ray.remote(examiner).options(num_cpus=self._options.cpus, num_gpus=self._options.gpus, max_restarts=0)

    def _no_reply(self) -> str:
        free = ray.available_resources()
        wanted = f"{self._options.cpus:g} CPUs and {self._options.gpus} GPUs"
        return f"no reply within {self._options.timeout_s:g} s (it needs {wanted}; free: {free.get('CPU', 0):g} and {free.get('GPU', 0):g})"

    def _kill(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(self._actor)
        self._actor = None
        self._fingerprint = None


def _cause(error: RayError) -> str:
    """The last line of a remote traceback: the exception itself."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
