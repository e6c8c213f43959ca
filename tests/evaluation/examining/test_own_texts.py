"""`python -m evaluation write`: texts of a model's own, as replay documents."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from console import RunError, UserError
from data.config import DataConfig
from data.load import load_corpus
from evaluation.__main__ import main
from trainer.config import TinyModel
from trainer.network.model import make_tiny_model

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "model"
    make_tiny_model(folder, TinyModel(vocab_size=400, max_positions=64), ["one two three four five six seven"] * 8, 0)
    return folder


@pytest.fixture
def write(model: Path, tmp_path: Path) -> Write:
    def texts(name: str, *arguments: str) -> Path:
        main(["write", str(model), "--out", str(tmp_path / name), "--texts", "6", "--tokens", "12", "--batch", "4", *arguments])
        return tmp_path / name

    return texts


def lines(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_as_many_texts_as_are_wanted_and_the_same_for_a_seed(write: Write) -> None:
    first, again, other = write("a.jsonl"), write("b.jsonl"), write("c.jsonl", "--seed", "1")
    assert len(set(lines(first))) == 6 and lines(first) == lines(again) != lines(other)
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_they_are_replay_documents(write: Write) -> None:
    path = write("own.jsonl")
    source = {"path": path.name, "split": "replay", "holds": "documents"}
    corpus = load_corpus(DataConfig.model_validate({"root": str(path.parent), "sources": [source]}), 0)
    assert [document.text for document in corpus.part("replay").documents] == lines(path)


def test_nothing_is_written_over_and_nothing_half(write: Write, tmp_path: Path) -> None:
    before = write("a.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"a\.jsonl: is there already"):
        write("a.jsonl")
    assert before == (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(UserError, match="is no folder"):
        write("nowhere/a.jsonl")
    with pytest.raises(RunError, match=r"different texts in 60 tries; ask for fewer --texts, or give a higher --temperature"):
        write("few.jsonl", "--temperature", "0.001")  # greedy: one text
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("arguments", [["--temperature", "0"], ["--texts", "0"], ["--tokens", "1"]])
def test_arguments_that_mean_nothing(write: Write, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        write("x.jsonl", *arguments)
    assert ended.value.code == 2 and arguments[0] in capsys.readouterr().err
