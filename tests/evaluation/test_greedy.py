"""The exam is greedy whatever the model's generation_config.json asks for (Qwen's instruct models ask for a repetition penalty)."""

import json
from pathlib import Path

import torch

from evaluation.engine import EngineOptions
from evaluation.generate import Generator
from trainer.config import TinyModel

ASKED = {
    "repetition_penalty": 1.9,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [5, 6, 7],
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 3,
}


def test_answers_do_not_follow_generation_config(tmp_path: Path) -> None:
    from trainer.network.model import make_tiny_model

    make_tiny_model(tmp_path, TinyModel(vocab_size=300, hidden_size=32, layers=1), ["a few words"] * 3, seed=0)
    prompts = [[1, 20, 21, 22], [1, 30]]

    def said() -> list[list[int]]:
        answers = Generator(str(tmp_path), None, 64, EngineOptions()).answer(prompts, 12, 2)
        return [answer["token_ids"] for answer in answers]

    plain = said()
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **ASKED}))
    assert said() == plain and len(plain[0]) == 12
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, plain[0][3]]}))  # an end of turn beside the end of text
    assert said()[0] == plain[0][: plain[0].index(plain[0][3]) + 1], "vLLM ends there, too"
    model = Generator(str(tmp_path), None, 64, EngineOptions())._model  # the twin: heeded, it would answer otherwise
    model.generation_config = type(model).from_pretrained(tmp_path).generation_config
    heeded = model.generate(torch.tensor(prompts[:1]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2)
    assert heeded[0, 4:].tolist() != plain[0]
