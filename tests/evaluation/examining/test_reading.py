"""How a small model reads best is tried on train questions: what it is asked, what it may be shown, and how the best is chosen."""

from pathlib import Path
from typing import Any

import pytest

from console import UserError
from data.records import Corpus, Document, Part, Question
from evaluation.__main__ import main
from evaluation.asking.passages import cut_passages
from evaluation.config import ExamConfig, RetrievalConfig
from evaluation.exam import build_exam
from evaluation.examining import reading
from tests.evaluation.test_exam import corpus


def test_the_exam_is_not_looked_at() -> None:
    whole = corpus(test=6, train=20)
    trial = reading.on_train(whole, 4, 0)
    asked = trial.part("test").questions
    assert len(asked) == 4 and set(asked) < set(whole.part("train").questions)
    shown = trial.part("train").questions
    assert not {question.doc_id for question in asked} & {question.doc_id for question in shown}, (
        "no document is read for one and solved for another"
    )
    told = {d.id for d in [*trial.part("test").documents, *trial.part("train").documents]}
    assert told == {d.id for d in whole.part("train").documents}
    with pytest.raises(UserError, match="no train questions that are linked to a train document"):
        reading.on_train(Corpus({"train": Part([], [Question("q", "Who?", ("a",))])}), 4, 0)


def test_only_what_stands_in_its_document_is_shown() -> None:
    documents = [Document(f"d{n}", f"Ada was born in {place}.") for n, place in enumerate(["Oslo", "Rome", "Bern"])]
    golds = ["Oslo", "Paris", "Bern"]
    train = Part(documents, [Question(f"q{n}", "Where was Ada born?", (gold,), f"d{n}") for n, gold in enumerate(golds)])
    data = Corpus({"train": train, "test": corpus().parts["test"]})
    exam = build_exam(data, ExamConfig.model_validate({"reading": {"shots": 3}}), 0, ["closed", "open"])
    assert exam.reading is not None and [question.answers[0] for _, question in exam.reading.solved] == ["Oslo", "Bern"]
    assert not build_exam(data, ExamConfig(), 0).reading


def test_the_best_by_f1_and_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, Any], tuple[str, ...]]] = []

    def sit(trial: Corpus, config: ExamConfig, seed: int, modes: tuple[str, ...], *_: Any) -> dict[str, dict[str, float]]:
        asked.append((config.reading.model_dump(), modes))
        good = config.reading.shots / 4 + bool(config.reading.lead) / 8 + (config.retrieval.k == 1) / 4 * ("retrieval" in modes)
        return {
            mode: {"n": 4, "em": 0.0 if mode == "closed" else good / 2, "recall": good, "f1": good * (mode != "closed")} for mode in modes
        }

    monkeypatch.setattr(reading, "_sit", sit)
    found = reading.try_settings(corpus(), ExamConfig(), 0, "m", None, None, Path())  # type: ignore[arg-type]
    assert found["chosen"]["reading"] == {"lead": reading.LEAD, "shots": 2} and found["chosen"]["retrieval"]["k"] == 1
    assert found["bound"] == {"closed": 0.0, "retrieval": pytest.approx(0.4375), "open": pytest.approx(0.3125)}
    assert [modes for _, modes in asked] == [("closed", "open"), *[("open",)] * 3, *[("retrieval",)] * 4]
    assert all(settings == {"lead": reading.LEAD, "shots": 2} for settings, modes in asked if modes == ("retrieval",))


def test_short_passages() -> None:
    class Words:
        max_tokens = 100

        def word_offsets(self, text: str) -> list[tuple[int, int]]:
            places, at = [], 0
            for word in text.split():
                at = text.index(word, at)
                places.append((at, at + len(word)))
                at += len(word)
            return places

    document = Document("d", " ".join(f"w{n}" for n in range(60)), "Ada Berg")
    whole, short = (cut_passages(document, Words(), RetrievalConfig(passage_tokens=tokens, overlap_tokens=4)) for tokens in (None, 20))
    assert len(whole) == 1 and len(short) > 3 and all(len(passage.text.split()) <= 20 for passage in short)
    assert all(passage.text.startswith("Ada Berg\n") for passage in short)


def test_a_model_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.name: a folder is meant here"):
        main(["reading", "experiments/bios_cpu.yaml", f"runs={tmp_path}"])
