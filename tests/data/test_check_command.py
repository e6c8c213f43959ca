"""python -m data check, as a person calls it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.__main__ import main

ROOT = Path(__file__).parents[2]
EXPERIMENT = """name: t
data:
  root: {root}
  sources:
    - {{path: d.jsonl, split: train, holds: documents, columns: {{id: key}}}}
    - {{path: q.jsonl, split: train, holds: questions, columns: {{doc_id: key}}}}
model: {{tiny: {{hidden_size: 96, layers: 2, head_size: 32}}}}
arms: {{mix: {{preset: mix}}}}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "d.jsonl").write_text("".join(f'{{"key": {i}, "text": "text {i}"}}\n' for i in range(5)))
    (tmp_path / "q.jsonl").write_text("".join(f'{{"key": {i}, "question": "q{i}?", "answer": "a"}}\n' for i in range(4)))
    path = tmp_path / "x.yaml"
    path.write_text(EXPERIMENT.format(root=tmp_path))
    return path


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(run_command: Run) -> Run:
    return lambda *arguments: run_command("data", *map(str, arguments))


def test_a_good_experiment(experiment: Path, run: Run) -> None:
    done = run("check", experiment)
    assert done.returncode == 0 and done.stderr == ""
    assert "d.jsonl" in done.stdout and "share no text" in done.stdout


def test_a_malformed_line_in_the_middle_stops_with_its_place(experiment: Path, run: Run) -> None:
    broken = experiment.parent / "d.jsonl"
    lines = broken.read_text().splitlines()
    lines[2] = '{"key": 2, "text": oops}'
    broken.write_text("\n".join(lines) + "\n")
    done = run("check", experiment)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {broken}:3: malformed JSON: Expecting value at column 20: ")
    assert "1 more bad rows" in line and "data.bad_rows=quarantine" in line  # the other: its question
    assert "Traceback" not in done.stderr


def test_json_and_quarantine(experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "d.jsonl").open("a") as file:
        file.write('{"key": 9}\n')
    bad = tmp_path / "bad.jsonl"
    main(["check", str(experiment), "data.bad_rows_limit=0.5", "--json", "--quarantine", str(bad)])
    account = json.loads(capfd.readouterr().out)
    documents = account["sources"][0]
    assert (documents["read"], documents["used"], documents["bad"], documents["left_out_by_rule"]) == (6, 5, 1, 0)
    assert documents["refused"][0]["reason"] == "text is missing"
    assert account["splits"]["train"] == {
        "documents": 5,
        "questions": 4,
        "choices": 0,
        "questions_per_document": 1.0,
        "documents_without_questions": 1,
        "questions_without_document": 0,
    }
    assert json.loads(bad.read_text())["where"] == f"{tmp_path}/d.jsonl:6"


def test_a_single_file(experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["check", str(tmp_path / "q.jsonl"), "--holds", "questions", "--column", "doc_id=key"])
    assert "links not checked" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.yaml"], "missing.yaml: cannot be read"),
        (["d.jsonl"], "--holds documents"),
        (["d.jsonl", "--holds", "documents", "--column", "text"], "expected FIELD=COLUMN"),
        (["d.jsonl", "--holds", "documents", "--column", "txet=text"], "txet is no field of documents; did you mean text"),
        (["d.jsonl", "a.b=c", "--holds", "documents"], "overrides belong to an experiment"),
        (["d.xyz", "--holds", "documents"], "--format"),
        (["nothing.jsonl", "--holds", "documents"], "cannot be read: No such file"),
        (["x.yaml", "--holds", "documents"], "are for one file"),
        (["x.yaml", "data.rot=1"], "did you mean root"),
    ],
)
def test_bad_calls(experiment: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(experiment.parent)
    with pytest.raises(ValueError, match=message):
        main(["check", *arguments])


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check", "--help"])
    assert stop.value.code == 0
    assert "python -m data check films.jsonl --holds documents --column id=wiki_id" in capsys.readouterr().out


def test_checking_needs_no_ray_and_no_torch(experiment: Path, run: Run) -> None:
    code = (
        "import sys; from data.__main__ import main; main(['check', sys.argv[1]]); "
        "heavy = {'ray', 'torch', 'pandas', 'datasets', 'transformers'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(experiment)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
