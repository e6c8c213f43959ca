"""Ropes with other factors for long sequences: every token is what a forward pass of plain transformers over all tokens before it gives."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.engine import Engine
from evaluation.engines.lengths import answer_by_length, likelihoods_by_length, neighbours
from evaluation.engines.network import Network
from evaluation.engines.options import EngineOptions
from evaluation.generate import Generator

EOS, SHORT, TOKENS = 2, 40, 8
LENGTHS = (5, SHORT - 7, SHORT - 3, SHORT - 1, SHORT, SHORT + 1, SHORT + 25)
"""Short, the longest that stays short, three whose answers cross over, two long ones."""
PROMPTS = [[1, *((7 * n * n + 11 * i + 5) % 300 + 3 for i in range(length - 1))] for n, length in enumerate(LENGTHS)]
SEQUENCES = [(PROMPTS[-1] + PROMPTS[-2])[:length] for length in (6, SHORT - 1, SHORT, SHORT + 1, 90)]


class Sides:
    """Says what it was asked: the side's letter and the length it began at, a token each; ends a short answer after so many tokens as the prompt's first number."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, str, int]] = []

    def __call__(self, long: bool, method: str, *given: Any) -> Any:
        self.asked.append((long, method, len(given[0])))
        if method == "text_of":
            return "whole"
        if method == "log_likelihoods":
            return [float(long)] * len(given[0])
        prompts, budget = given[0], given[1]
        sizes = [budget if long else min(budget, SHORT + 1 - len(p), p[0]) for p in prompts]
        return [
            {"token_ids": [int(long)] * n, "text": "", "finish_reason": "stop" if n == p[0] else "length", "logprob": -1.0}
            for n, p in zip(sizes, prompts, strict=True)
        ]


def test_answers_that_cross_over_are_asked_in_two_parts() -> None:
    ask = Sides()
    prompts = [[9] * SHORT, [1] * 10, [9] * (SHORT - 1), [9] * (SHORT + 1)]
    found = answer_by_length(ask, SHORT, prompts, 4, EOS)
    assert [a["token_ids"] for a in found] == [[0, 1, 1, 1], [0], [0, 0, 1, 1], [1] * 4]
    assert [a["logprob"] for a in found] == [-2.0, -1.0, -2.0, -1.0] and found[0]["text"] == "whole"
    assert [long for long, method, _ in ask.asked if method == "answer"] == sorted(
        long for long, method, _ in ask.asked if method == "answer"
    )


def test_one_change_of_sides_a_call() -> None:
    for first in (False, True):
        ask = Sides()
        assert likelihoods_by_length(ask, SHORT, first, [[1] * 50, [1] * 40, [1] * 41, [1]], [1] * 4) == [1.0, 0.0, 1.0, 0.0]
        assert [long for long, _, _ in ask.asked] == [first, not first]
    assert neighbours([50, 3, 60, 4], lambda n: n > 40) == [3, 4, 50, 60]


@pytest.fixture(scope="module", params=["Phi3", "Llama"])
def long_rope(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Factors that are far apart; Phi-3 with part of each head turned, as Phi-4-mini has it, and a scale of its own."""
    import torch
    import transformers

    from data.wording.tiny_tokenizer import make_tokenizer

    folder = tmp_path_factory.mktemp("long") / request.param
    own: dict[str, Any] = {"partial_rotary_factor": 0.5, "attention_factor": 1.3} if request.param == "Phi3" else {"factor": 4.0}
    pairs = 8 if request.param == "Phi3" else 16
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * pairs, "long_factor": [4.0 + i for i in range(pairs)]}
    original = {"original_max_position_embeddings": SHORT} if request.param == "Phi3" else {}
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=160, tie_word_embeddings=False, bos_token_id=1, eos_token_id=EOS, pad_token_id=0, initializer_range=0.3,
        rope_parameters={**rope, **own, "original_max_position_embeddings": SHORT}, **original,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer(["some words to make tokens of"], 300).save_pretrained(folder)
    return folder


def plain(folder: Path) -> tuple[list[list[int]], list[float], list[float]]:
    """Greedy tokens of PROMPTS and their log-probabilities, a forward pass over everything for each; log-likelihoods of SEQUENCES."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said, sure = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            ids, total = list(prompt), 0.0
            while len(ids) < len(prompt) + TOKENS and ids[-1] != EOS:
                best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1).max(-1)
                ids, total = [*ids, int(best.indices)], total + float(best.values)
            said.append(ids[len(prompt) :])
            sure.append(total)
        logs = [model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1) for ids in SEQUENCES]
    scores = [sum(float(log[i, t]) for i, t in enumerate(ids[1:])) for log, ids in zip(logs, SEQUENCES, strict=True)]
    return said, sure, scores


def check(engine: Any, folder: Path) -> None:
    said, sure, scores = plain(folder)
    answers = engine.answer(PROMPTS, TOKENS, EOS)
    assert [a["token_ids"] for a in answers] == said
    assert [a["logprob"] for a in answers] == pytest.approx(sure, abs=1e-4)  # fp32 summed in another order, over at most 8 tokens
    assert engine.log_likelihoods(SEQUENCES) == pytest.approx(scores, abs=1e-3)  # and over 89 tokens of some 8 nats


def test_transformers_asks_each_alone(long_rope: Path) -> None:
    generator = Generator(str(long_rope), None, 160, EngineOptions())
    check(generator, long_rope)
    generator._short = (
        None  # the twin: transformers' generate by itself goes on with the keys of the short factors, or with its own reading
    )
    generator._model.config.original_max_position_embeddings = 10_000
    with pytest.raises(AssertionError):
        check(generator, long_rope)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_asks_each_alone(ray_cluster: Any, long_rope: Path) -> None:
    with Engine(EngineOptions(timeout_s=240, backend="vllm")) as engine:
        engine.open(str(long_rope), "w", 120)
        check(engine, long_rope)
        engine._at(True, "probe")
        engine._network = Network()  # the twin: the engine that was made for long prompts, for all
        with pytest.raises(AssertionError):
            check(engine, long_rope)
