"""examine and ask: a model's folder, a file of questions, a folder of documents; real vLLM on the CPU."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data.wording.tiny_tokenizer import make_tokenizer
from tests.evaluation.test_engine import checkpoints  # noqa: F401  (a fixture: tiny random Llamas)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    (folder / "cat.txt").write_text("The cat sleeps on the sofa.")
    (folder / "bank.md").write_text("Interest rates rose by half a percent.")
    rows = [
        {"id": "a", "question": "Where does the cat nap?", "answers": ["on the sofa"]},
        {"id": "b", "question": "Who?", "answers": ["Ada"]},
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_examine_and_ask(checkpoints: dict[str, Path], notes: Path, tmp_path: Path, run_command: Run) -> None:  # noqa: F811
    model, questions = str(checkpoints["untied-0"]), notes / "questions.jsonl"
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("cat.txt", "bank.md"):
        (documents / name).write_text((notes / name).read_text())
    done = run_command("evaluation", "examine", model, str(questions), "--documents", str(documents), "--answer-tokens", "8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {mode: of["n"] for mode, of in found["modes"].items()} == {"closed": 2, "retrieval": 2}
    assert found["retrieval"]["passages"] == 2
    helped = next(r for r in found["answers"] if r["mode"] == "retrieval" and r["question_id"] == "a")
    assert helped["retrieved"] == ["cat.txt#0", "bank.md#0"]
    assert helped["gold_logprob"] < 0
    done = run_command("evaluation", "ask", model, "Where does the cat nap?", "--answer-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("closed: ") and "(probability " in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_model_that_vllm_refuses(notes: Path, tmp_path: Path, run_command: Run) -> None:
    """Qwen 2 with a window in one layer of two: transformers answers; asked for by name, vLLM's refusal names it. No process is left."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    windows = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    tokenizer = make_tokenizer(["some words to make tokens of"], 300)
    config = Qwen2Config(
        vocab_size=len(tokenizer), max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes, **windows
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = ["examine", str(tmp_path), str(notes / "questions.jsonl"), "--answer-tokens", "4", "--json"]
    done = run_command("evaluation", *asked)
    assert done.returncode == 0 and len(json.loads(done.stdout)["answers"]) == 2
    assert "examined by transformers' generate: vLLM has no qwen2 with sliding windows in some layers only" in done.stderr
    done = run_command("evaluation", *asked, "--engine", "vllm")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "vLLM refuses it: AssertionError: Sliding window for some but all layers" in last and "--engine transformers" in last
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert not left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["examine", "MODEL", "nowhere.jsonl"], "nowhere.jsonl: no such file of questions"),
        (["ask", "no-such-folder/model", "Who?"], "model no-such-folder/model: its tokenizer cannot be loaded"),
        (["ask", "MODEL", "Who?", "--documents", "nowhere"], "nowhere: no such folder of documents"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(
    arguments: list[str],
    said: str,
    checkpoints: dict[str, Path],  # noqa: F811
    run_command: Run,
) -> None:
    words = [str(checkpoints["untied-0"]) if word == "MODEL" else word for word in arguments]
    done = run_command("evaluation", *words, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
