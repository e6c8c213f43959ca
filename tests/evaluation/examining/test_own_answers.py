"""`python -m evaluation answers`: a model's own answers to the train questions, as questions to train."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from console import UserError
from data.config import DataConfig
from data.corpus.bios import make_bios
from data.curriculum.catalogue import catalogue_of
from data.load import load_corpus
from data.wording.tiny_tokenizer import texts_for_tokenizer
from evaluation.config import ExamConfig
from evaluation.engines.options import EngineOptions
from evaluation.examining.own_answers import _halves, answers_command, is_whole
from evaluation.examining.reading import Asked
from trainer.config import TinyModel
from trainer.network.model import make_tiny_model

DATA = DataConfig.model_validate({"bios": {"replay_people": 0, "train_people": 3, "test_people": 1}})


def asked(folder: Path, **exam: Any) -> Asked:
    config = ExamConfig.model_validate({"answer_tokens": 6, "engine": "transformers", **exam})
    return Asked(DATA, None, "auto", config, folder, 0)


def test_each_half_is_shown_the_other_solved() -> None:
    corpus = load_corpus(DATA, 0)
    halves = _halves(corpus)
    assert {question.id for half, _ in halves for question in half} == {question.id for question in corpus.part("train").questions}
    for half, rest in halves:
        assert rest and not {question.doc_id for question in half} & {question.doc_id for question in rest}


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"finish_reason": "stop", "output": "Oslo"}, True),
        ({"finish_reason": "length", "output": "in the town of"}, False),
        ({"finish_reason": "length", "output": "\nOslo\nQuestion: Where"}, True),
        ({"finish_reason": "stop", "output": "Oslo", "context_cut": 3}, False),
    ],
)
def test_what_was_cut_off_is_not_learnt(row: dict[str, Any], whole: bool) -> None:
    assert is_whole({"context_cut": 0, **row}) == whole


def test_they_are_train_questions(ray_cluster: str, tmp_path: Path) -> None:
    corpus = make_bios(DATA.bios, 0)  # type: ignore[arg-type]
    model, out = tmp_path / "model", tmp_path / "own.jsonl"
    make_tiny_model(model, TinyModel(vocab_size=600, hidden_size=32, layers=1), texts_for_tokenizer(catalogue_of(corpus).records), 0)
    generation = json.loads((model / "generation_config.json").read_text())
    ends = {**generation, "eos_token_id": [generation["eos_token_id"], *range(300, 600)]}  # an untrained model would never end by itself
    (model / "generation_config.json").write_text(json.dumps(ends))

    def command(*more: str) -> int:
        options = EngineOptions(timeout_s=240, backend="transformers")
        words = ["x.yaml", "--model", str(model), "--out", str(out), *more]
        return answers_command(
            words, lambda config, insecure: nullcontext(options), lambda file, overrides: asked(tmp_path, reading={"shots": 1})
        )

    assert command() == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    questions = {question.id: question for question in corpus.part("train").questions}
    assert written and all(row["gold"] == list(questions[row["id"]].answers) and row["answer"] for row in written)
    source = {"path": out.name, "split": "train", "holds": "questions"}
    read = load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [source]}), 0).part("train").questions
    assert [(question.question, question.answers, question.doc_id) for question in read] == [
        (questions[row["id"]].question, (row["answer"],), questions[row["id"]].doc_id) for row in written
    ]
    with pytest.raises(UserError, match=r"own\.jsonl: is there already"):
        command()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "model", "own.jsonl"]
