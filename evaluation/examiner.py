"""One vLLM engine in one process. Beside data/build/asking/local_model.py the only file that imports vllm."""

import logging
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

from console import error_line
from data.ground.imports import importing
from evaluation.engines.agreement import Saying, probes
from evaluation.engines.gpus import await_free_gpus
from evaluation.engines.network import network, read_network
from evaluation.engines.options import Answer, EngineOptions

log = logging.getLogger(__name__)

_BATCHED_TOKENS = 2048
"""Tokens a forward pass: with prompt log-probabilities the logits of all of them are held at once (2048 × V × 4 bytes)."""
_PROBE_TOKENS = 16


class Examiner:
    """Greedy decoding, so the same weights give the same answers."""

    one_rope = True
    """An engine has the factors of its max_model_len for all sequences (evaluation/engines/lengths.py)."""

    def __init__(self, path: str, revision: str | None, max_model_len: int, options: EngineOptions) -> None:
        # One process: vLLM's own child would outlive a killed actor, and on CPUs its threads fight for the same cores.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if options.gpus:
            await_free_gpus()
        with importing():
            from vllm import LLM

        settings: dict[str, Any] = (
            {"tensor_parallel_size": options.gpus}
            if options.gpus
            else {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30),
            }
        )
        if short := read_network(path, revision).short:
            settings["hf_overrides"] = partial(_room_for_one_more, short)
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
        config = self._llm.llm_engine.model_config
        self._options, self._max_model_len = options, max_model_len
        self._new_only = _new_only(config, options.gpus)
        self._vocab_size = int(config.hf_text_config.vocab_size)
        self._network = network(path)
        self._loads = 0

    def load(self, path: str) -> bool:
        """Puts the weights of another checkpoint into the running engine; False where only a new engine is right.

        That is: another network or tokenizer, a hub id, or what is known to be reloaded wrongly, without an error (`_new_only`).
        """
        if self._new_only or self._network is None or network(path) != self._network:
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
        """Greedy continuations of token prompts, up to and including `eos_id`, `max_tokens` tokens, or max_model_len with the prompt's."""
        from vllm import SamplingParams

        # logprobs=0: of each token its own log-probability, and no runners-up.
        greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop_token_ids=[eos_id], logprobs=0)
        said = [output.outputs[0] for output in self._generate(prompts, greedy)]
        return [
            Answer(token_ids=list(s.token_ids), text=s.text, finish_reason=s.finish_reason or "", logprob=float(s.cumulative_logprob))
            for s in said
        ]

    def text_of(self, ids: list[int]) -> str:
        """As Answer.text."""
        return str(self._llm.get_tokenizer().decode(ids, skip_special_tokens=True))

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

    def sayings(self) -> list[Saying]:
        """What is compared: fixed sequences, then their greedy continuations, which (unlike the former) may come from the cache of prompts."""
        asked = probes(self._vocab_size, self._max_model_len)
        scored = [Saying(ids, 1, value) for ids, value in zip(asked, self.log_likelihoods(asked), strict=True)]
        answers = zip(asked, self.answer(asked, 4, 0), strict=True)
        return [*scored, *(Saying(ids + answer["token_ids"], len(ids), answer["logprob"]) for ids, answer in answers)]

    def by_transformers(self, path: str, revision: str | None, sequences: list[list[int]], starts: list[int]) -> list[float] | None:
        """Plain transformers' log_likelihoods of the checkpoint at `path`. None where they would say nothing: on GPUs and in bf16, whose
        roundings are as large as what a short training changes; where a second copy does not fit; where transformers cannot read it.
        """
        from evaluation.generate import Generator

        if self._options.gpus or self._options.dtype != "float32" or not _fits(path):
            return None
        try:
            return Generator(path, revision, self._max_model_len, self._options).log_likelihoods(sequences, starts)
        except Exception as error:  # whatever a network's code throws: then there is nothing to compare with
            log.warning("%s is not compared with transformers: %s", path, error_line(error))
            return None


def _new_only(config: Any, gpus: int) -> str:
    """Why vLLM 0.32 cannot reload such a network, known beforehand; tests/evaluation/test_engine.py shows both."""
    if any(getattr(of, "tie_word_embeddings", False) for of in (config.hf_config, config.hf_text_config)):
        return "tied embeddings: the old output layer would stay"
    return "experts on CPUs: they would not be packed for their kernel" if config.is_moe and not gpus else ""


def _room_for_one_more(short: int, config: Any) -> Any:
    """A config whose short factors serve one token more, for vLLM decodes one beyond the longest sequence that it is asked about.

    The scale of the queries follows from the lengths, in vLLM from these alone: it is given as transformers computes it.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = config.get_text_config()
    if not getattr(text, "rope_parameters", None):  # vLLM asks an empty config first, for its model_type
        return config
    _, scale = ROPE_INIT_FUNCTIONS["longrope"](text, "cpu")
    rope = {"short_mscale": scale, "long_mscale": scale, **text.rope_parameters, "original_max_position_embeddings": short + 1}
    text.rope_parameters = rope
    if hasattr(text, "original_max_position_embeddings"):
        text.original_max_position_embeddings = short + 1
    return config


def _fits(path: str) -> bool:
    """Whether a second copy in fp32 fits into this machine's memory beside the engine; files of 16 bits a weight double."""
    stored = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return Path(path).is_dir() and 2 * stored < 1024 * int(facts["MemAvailable"].split()[0])
