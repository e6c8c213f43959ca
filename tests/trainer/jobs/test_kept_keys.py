"""What was trained stays trained: the keys of stages are those of before, whatever became of the files that make them."""

import json
from pathlib import Path

import pytest

from data.config import DataConfig, Mix, Source, Stage
from trainer.config import ModelConfig, TinyModel, TrainerConfig
from trainer.run import prepare
from trainer.store import stages as store

KEPT = ["b4e0bb6591483999", "731233d025861160", "ca62c84bcf4cf1dc"]
"""Made by the build of commit 06945e2."""
DOCUMENTS = [{"id": f"d{n}", "text": f"The boat number {n} is called Swallow {n} and lies in Whitby."} for n in range(6)]
QUESTIONS = [{"doc_id": f"d{n}", "question": f"What is boat number {n} called?", "answer": f"Swallow {n}"} for n in range(6)]
STAGES = [
    Stage(mix=Mix(train_documents=1), epochs=2, batch_items=4, rate=1e-3),
    Stage(mix=Mix(train_questions=1), epochs=1, batch_items=3, rate=1e-4, schedule="wsd", loss="token", template="alpaca"),
    Stage(mix=Mix(train_documents=1, train_questions=1), order="questions_first", epochs=1, batch_items=4, rate=1e-3, freeze_share=0.5),
]


def keys(folder: Path, stages: list[Stage]) -> list[str]:
    for name, rows in (("d", DOCUMENTS), ("q", QUESTIONS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [Source(path=f"{name}.jsonl", split="train", holds=holds) for name, holds in (("d", "documents"), ("q", "questions"))]  # type: ignore[arg-type]
    model = ModelConfig(tiny=TinyModel(hidden_size=32, layers=1, vocab_size=400))
    made = prepare(
        folder / "run",
        DataConfig(root=str(folder), sources=sources),
        model,
        TrainerConfig(row_tokens=512),
        {"base": [], "a": stages},
        0,
        False,
    )
    return [job.key for job in made.jobs]


def test_keys_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "version", lambda name: "1")  # of torch and its kin, which are in keys as well
    assert keys(tmp_path, STAGES) == KEPT
    assert keys(tmp_path, [STAGES[0].model_copy(update={"rate": 2e-3})]) != KEPT[:1], "the twin: another rate is another stage"
