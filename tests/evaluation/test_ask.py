"""examine and ask: a model's folder, a file of questions, a folder of documents; real vLLM on the CPU."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

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
