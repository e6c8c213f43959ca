"""A real, tied language model where `make real-model` has left it: it learns real documents, vLLM and transformers say the same, and it ends its turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.rows.framing import framing_of
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import Wording
from evaluation.engine import Engine
from evaluation.engines.options import EngineOptions
from tests.conftest import ROOT
from tests.models.real import films

MODEL = ROOT / ".real-model"
pytestmark = [
    pytest.mark.skipif(not (MODEL / "model.safetensors").is_file(), reason="make real-model has not been run"),
    pytest.mark.timeout(900),  # a minute on two idle cores
]
FACTS = ["The capital of France is", "Water is made of hydrogen and", "The opposite of hot is", "Question: Who wrote Hamlet? Answer:"]
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-m", "tests.models.real", str(MODEL), str(shared_data / "wiki2023_film"), str(out)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads((out / "result.json").read_text()))


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_three_steps_lower_the_loss_on_real_documents(arm: str, trained: dict[str, Any]) -> None:
    """By more than a tenth of a nat a token: the first steps on a few documents go far beyond rounding (1e-6)."""
    assert trained["losses"][arm] < trained["losses"]["base"] - 0.1
    assert trained["losses"]["base"] < 4.5, "it reads English: a model of uniform guesses has log 49,152 = 10.8"


def test_a_trained_folder_says_how_it_was_trained(trained: dict[str, Any]) -> None:
    """SmolLM2's tokenizer names <|im_start|> and adds nothing: neither do we."""
    assert framing_of(Path(trained["hf"]["full"])) == {"template": "pit", "begins": [], "ends": "<|im_end|>"}
    assert Encoder(load_tokenizer(trained["hf"]["full"])).start == []


def said_by_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(ids) :].tolist() for ids in prompts]


@pytest.mark.slow
def test_vllm_says_what_transformers_says_before_and_after_training(trained: dict[str, Any], ray_cluster: str) -> None:
    """Tied weights go through one engine or past it (evaluation/engine.py): either way the second checkpoint's words are its own."""
    encoder = Encoder(load_tokenizer(str(MODEL)))
    prompts = [encoder._backend.encode(fact, add_special_tokens=False).ids for fact in FACTS]
    chat = Encoder(load_tokenizer(str(MODEL)), Wording("chat"))
    said = {}
    with Engine(EngineOptions(timeout_s=300)) as engine:
        for name, folder in (("base", MODEL), ("full", Path(trained["hf"]["full"]))):
            engine.open(str(folder), name, 128)
            said[name] = [answer["token_ids"] for answer in engine.answer(prompts, NEW_TOKENS, encoder.eos_id)]
            assert said[name] == said_by_transformers(folder, prompts)
            if name == "base":
                [turn] = engine.answer([chat.prompt("What is the capital of France? Answer in one word.")], 48, chat.eos_id)
    assert said["base"] != said["full"], "the twin: other weights say something else"
    assert "Paris" in encoder._backend.decode(said["base"][0])
    assert turn["finish_reason"] == "stop" and "Paris" in turn["text"]


@pytest.mark.slow
def test_with_the_document_at_hand_it_answers_what_it_cannot_know(
    shared_data: Path, tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Films of 2023 are newer than the model: by far more than chance (its answers are names and dates) a passage helps, or it cannot read."""
    data = shared_data / "wiki2023_film"
    chosen = {film["wiki_id"]: film for film in films(data)}
    (tmp_path / "films").mkdir()
    for number, film in chosen.items():
        (tmp_path / "films" / f"{number}.txt").write_text(film["text"], encoding="utf-8")
    rows = [row for row in map(json.loads, (data / "test_qa.jsonl").read_text(encoding="utf-8").splitlines()) if row["wiki_id"] in chosen]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": r["question"], "answers": [r["answer"]]}) + "\n" for r in rows[:16]))
    options = ("--documents", str(tmp_path / "films"), "--k", "1", "--answer-tokens", "24", "--json")
    done = run_command("evaluation", "examine", str(MODEL), str(questions), *options, timeout_s=800)
    assert done.returncode == 0, done.stderr[-2000:]
    recall = {mode: scores["recall"]["mean"] for mode, scores in json.loads(done.stdout)["modes"].items()}
    assert recall["retrieval"] > recall["closed"] + 0.2
