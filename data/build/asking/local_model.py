"""vLLM in this process as a writer of JSON that follows a schema (guided decoding). Runs in Ray workers.

The exam has an engine of its own (evaluation/examiner.py), which swaps checkpoints and scores tokens; this one keeps one model and
obeys a grammar. The rooms meet on disk only, so neither imports the other.
"""

import os
from collections.abc import Iterator
from typing import Any

from data.build.asking.exchange import Declined, Reply, Request
from data.ground.imports import importing

_BATCHED_TOKENS = 4096


class LocalModel:
    """gpus: tensor-parallel GPUs of one node; 0: the CPU build of vLLM, with a GiB for its cache."""

    def __init__(self, model: str, revision: str | None, max_model_len: int, gpus: int) -> None:
        # One process: vLLM's own child would outlive a killed worker (evaluation/examiner.py).
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        with importing():
            from vllm import LLM

        settings: dict[str, Any] = {"tensor_parallel_size": gpus, "dtype": "auto"}
        if not gpus:
            settings = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30, "dtype": "auto"}
        self._llm = LLM(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(_BATCHED_TOKENS, max_model_len),
            seed=0,
            trust_remote_code=False,
            load_format="safetensors",  # "auto" would fall back on pickled weights
            # JSON allows any space between its tokens: a weak model writes nothing else, to the end of its allowance.
            # Of the engine, because vLLM 0.32 takes no notice of the same setting of a request.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            **settings,
        )
        self._max_model_len = max_model_len
        self._tokenizer = self._llm.get_tokenizer()

    def ask(self, requests: list[Request]) -> Iterator[tuple[Request, Reply | Declined]]:
        """All at once, as vLLM schedules them."""
        from vllm.inputs import TokensPrompt

        prompts, asked = [], []
        for request in requests:
            ids = self._prompt(request.messages)
            if len(ids) + request.max_tokens > self._max_model_len:
                yield request, Declined(f"too long: {len(ids)} + {request.max_tokens} tokens, and the model reads {self._max_model_len}")
            else:
                prompts.append(TokensPrompt(prompt_token_ids=ids))
                asked.append(request)
        if not asked:
            return
        outputs = self._llm.generate(prompts, [self._sampling(request) for request in asked], use_tqdm=False)
        for request, output in zip(asked, outputs, strict=True):
            said = output.outputs[0]
            yield (
                request,
                Reply(
                    text=said.text,
                    finish=said.finish_reason or "",
                    prompt_tokens=len(output.prompt_token_ids),
                    answer_tokens=len(said.token_ids),
                ),
            )

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """By the model's chat template; a model without one reads the texts as they are."""
        if self._tokenizer.chat_template:
            ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        else:
            ids = self._tokenizer.encode("\n\n".join(message["content"] for message in messages) + "\n")
        return list(ids)

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        guided = StructuredOutputsParams(json=request.schema) if request.schema is not None else None
        return SamplingParams(temperature=request.temperature, max_tokens=request.max_tokens, seed=request.seed, structured_outputs=guided)
