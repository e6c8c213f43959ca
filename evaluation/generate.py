"""transformers behind the engine's interface, for what vLLM cannot run: slower, and the same answers."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from data.ground.imports import importing
from evaluation.engines.gpus import await_free_gpus
from evaluation.engines.lengths import answer_by_length
from evaluation.engines.network import network, read_network

if TYPE_CHECKING:
    from evaluation.engines.options import Answer, EngineOptions

_LOGITS_AT_ONCE = 50_000_000
"""Elements of (rows, tokens, vocabulary) in one call: 200 MB of fp32."""
_PROBE_TOKENS = 16


class Generator:
    """One model in one process. Greedy; sequences of equal length share a batch, so that nothing is padded and nothing can leak."""

    one_rope = False
    """transformers chooses a rope's factors by the length of each forward pass."""

    def __init__(self, path: str, revision: str | None, max_model_len: int, options: "EngineOptions") -> None:
        if options.gpus:
            await_free_gpus()
        with importing():
            import torch
            from transformers import AutoTokenizer

        self._torch: Any = torch
        self._options, self._revision = options, revision
        self._device = "cuda" if options.gpus else "cpu"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        self._model: Any = self._read(path)
        self._vocabulary = int(self._model.config.get_text_config().vocab_size)
        self._short = read_network(path, revision).short
        self._network = network(path)

    def _read(self, path: str) -> Any:
        with importing():
            from transformers import AutoModelForCausalLM, GenerationConfig

        dtype = getattr(self._torch, self._options.dtype)
        revision = self._revision
        self._ends = _ends(path, revision)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # torch's kernel would leave the soft cap out
        model.generation_config = (
            GenerationConfig()
        )  # the model's own may ask for a penalty or for sampling: the exam is greedy, as vLLM's is
        return model.to(self._device).eval()

    def load(self, path: str) -> bool:
        """Puts the weights of another checkpoint in place; False where network or tokenizer are others, or may be (a hub id)."""
        if self._network is None or network(path) != self._network:
            return False
        self._model = None  # one at a time in memory
        self._model = self._read(path)
        return True

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> "list[Answer]":
        """See evaluation.examiner.Examiner.answer."""
        if self._short is None:
            return self._answer(prompts, max_tokens, eos_id)
        return answer_by_length(lambda long, method, *given: getattr(self, f"_{method}")(*given), self._short, prompts, max_tokens, eos_id)

    def _answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> "list[Answer]":
        """Of a rope with two sets of factors: no further than the prompt's own reach."""
        answers: list[Any] = [None] * len(prompts)
        for members in _equal_lengths(prompts, lambda length: max_tokens * self._vocabulary):
            ids = self._tensor([prompts[n] for n in members])
            within = ids.shape[1] <= (self._short or 0)
            budget = min(max_tokens, self._short + 1 - ids.shape[1]) if self._short and within else max_tokens
            ends = dict.fromkeys([eos_id, *self._ends])
            said = self._model.generate(
                input_ids=ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=budget, do_sample=False, num_beams=1,
                eos_token_id=[*ends], pad_token_id=eos_id, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            logs = self._torch.stack(said.logits, dim=1).float().log_softmax(-1)  # (rows, tokens, V)
            new = said.sequences[:, ids.shape[1] :]
            own = logs.gather(-1, new[..., None])[..., 0]
            for row, n in enumerate(members):
                tokens = new[row].tolist()
                end = next((place for place, token in enumerate(tokens) if token in ends), None)
                ended, tokens = end is not None, tokens if end is None else tokens[: end + 1]
                answers[n] = {
                    "token_ids": tokens,
                    "text": self._text_of(tokens),
                    "finish_reason": "stop" if ended else "length",
                    "logprob": math.fsum(own[row, : len(tokens)].tolist()),
                }
        return answers

    def _text_of(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        """See evaluation.examiner.Examiner.log_likelihoods."""
        found = [0.0] * len(sequences)
        for members in _equal_lengths(sequences, lambda length: length * self._vocabulary):
            ids = self._tensor([sequences[n] for n in members])
            with self._torch.no_grad():
                logs = self._model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            own = logs.gather(-1, ids[:, 1:, None])[..., 0]  # (rows, tokens - 1)
            for row, n in enumerate(members):
                found[n] = math.fsum(own[row, (starts[n] if starts else 1) - 1 :].tolist())
        return found

    def probe(self) -> float:
        """See evaluation.examiner.Examiner.probe."""
        return self.log_likelihoods([[i % self._vocabulary for i in range(_PROBE_TOKENS)]])[0]

    def _tensor(self, rows: list[list[int]]) -> Any:
        return self._torch.tensor(rows, dtype=self._torch.long, device=self._device)


def _equal_lengths(sequences: list[list[int]], elements_of: Any) -> Iterator[list[int]]:
    """Numbers of sequences of one length each, so many that their logits fit; elements_of(length) → logits of one."""
    order = sorted(range(len(sequences)), key=lambda n: len(sequences[n]))
    for length, group in groupby(order, key=lambda n: len(sequences[n])):
        members = list(group)
        size = max(1, _LOGITS_AT_ONCE // elements_of(max(1, length)))
        yield from (members[at : at + size] for at in range(0, len(members), size))


def _ends(path: str, revision: str | None) -> list[int]:
    """The tokens that end a turn as the model's own file says: vLLM ends at each of them, too."""
    from transformers import GenerationConfig

    try:
        named: Any = GenerationConfig.from_pretrained(path, revision=revision).eos_token_id
    except OSError:  # it has none
        return []
    return [] if named is None else [named] if isinstance(named, int) else list(named)
