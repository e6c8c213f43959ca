"""A corpus that is streamed, up to the jobs: the same stages as with all records held."""

import json
from pathlib import Path

from data.config import DataConfig, Stage
from trainer import run
from trainer.config import ModelConfig, TrainerConfig


def test_a_streamed_corpus_gives_the_same_stages(tmp_path: Path) -> None:
    rows = [{"id": f"a{n}", "text": f"Article {n} says {n * n} in so many words. " * (1 + n % 40)} for n in range(60)]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 2, "batch_tokens": 512, "rate": 1e-4, "loss": "token"})
    prepared = []
    for stream in (False, True):
        source = {"path": "news.jsonl", "split": "train", "holds": "documents", "stream": stream}
        data = DataConfig.model_validate({"root": str(tmp_path), "sources": [source]})
        model = ModelConfig.model_validate({"tiny": {"vocab_size": 400, "hidden_size": 32}})
        arms = {"base": [], "cpt": [stage]}
        prepared.append(run.prepare(tmp_path / f"run-{stream}", data, model, TrainerConfig(row_tokens=256), arms, 0, False))
    held, streamed = prepared
    assert streamed.corpus.part("train").streamed is not None and held.corpus.part("train").streamed is None
    assert [job.plan_sha256 for job in held.jobs] == [job.plan_sha256 for job in streamed.jobs]
    assert held.store.sha256 == streamed.store.sha256 and held.split_documents == streamed.split_documents > 0
    longest_step = max(int(streamed.store.lengths[plan.step(n)].sum()) for plan in streamed.plans["cpt"] for n in range(plan.num_steps))
    assert longest_step <= max(512, int(streamed.store.lengths.max()))
