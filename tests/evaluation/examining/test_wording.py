"""The exam asks in the words of training: a model that practised its chat template answers in it, and ends at its end of turn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.config import Bios, Stage
from data.corpus.bios import make_bios
from data.curriculum.catalogue import Catalogue, catalogue_of
from data.curriculum.plan import compile_plan
from data.rows.flat_rows import reading_of, step_rows
from data.rows.token_store import write_store
from data.tokens import Encoder
from data.wording.templates import Wording
from data.wording.tiny_tokenizer import texts_for_tokenizer
from evaluation.config import ExamConfig
from evaluation.engines.options import EngineOptions
from evaluation.exam import build_exam
from evaluation.examining import examine
from evaluation.score_files import TrainedArm, read_score, score_stem
from tests.data.wording.test_chat import CHATML, tokenizer_with
from trainer.config import TinyModel
from trainer.network.model import build_model, make_tiny_model
from trainer.step.plain import PlainEngine
from trainer.step.step import optimiser_step


def trained_model(folder: Path, catalogue: Catalogue) -> str:
    """A tiny Llama that knows by heart the questions of five people, in its chat template."""
    make_tiny_model(folder, TinyModel(vocab_size=600, hidden_size=64, max_positions=256), texts_for_tokenizer(catalogue.records), 0)
    tokenizer = tokenizer_with(CHATML, list(texts_for_tokenizer(catalogue.records)))
    tokenizer.save_pretrained(folder)
    module: Any = build_model(str(folder), "by_item", torch.float32)
    torch.manual_seed(0)
    module.resize_token_embeddings(len(tokenizer))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    stage = Stage.model_validate({"mix": {"train_questions": 1}, "epochs": 150, "batch_items": 25, "rate": 4e-3, "template": "chat"})
    store, plan = write_store(folder / "tokens", catalogue, Encoder(tokenizer, Wording("chat"))), compile_plan(stage, catalogue, 0)
    engine = PlainEngine(module, (0.9, 0.95), 0.0, 1.0)
    for step in range(plan.num_steps):
        rows = step_rows(plan, store, step, 0, 1, 4096, "example", reading_of(stage, 0))
        optimiser_step(engine, rows, stage.rate, "by_item")
    module.save_pretrained(folder)
    return str(folder)


def test_chat_is_asked_in_chat_and_ends_at_the_end_of_turn(ray_cluster: Any, tmp_path: Path) -> None:
    corpus = make_bios(Bios(replay_people=0, train_people=5, test_people=1), 0)
    path = trained_model(tmp_path / "model", catalogue_of(corpus))
    arms = [TrainedArm(t, path, "w", None, False, {"hf": path, "template": t}) for t in ("chat", "pit")]
    exam = build_exam(corpus, ExamConfig(documents=1, answer_tokens=12), seed=0)
    assert examine.examine([(arm, exam) for arm in arms], tmp_path, 0, EngineOptions(timeout_s=240)) == {}
    chat, pit = (read_score(score_stem(tmp_path, arm, exam.fingerprint(arm.template))) for arm in arms)
    assert chat is not None and pit is not None and chat.about["template"] == "chat"
    asked = [[row for row in score.rows if row["set"] == "train"] for score in (chat, pit)]
    assert all(row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n") for row in asked[0])
    assert all(row["prompt"].endswith("? Answer:") for row in asked[1])
    right = [np.mean([row["em"] for row in rows]) for rows in asked]
    assert right[0] == 1 and {row["finish_reason"] for row in asked[0]} == {"stop"}
    assert right[1] < 0.6  # the twin: in words that it never saw


def test_the_end_of_turn_is_not_the_end_of_sequence() -> None:
    """Else the test above would end for another reason."""
    tokenizer = tokenizer_with(CHATML)
    assert Encoder(tokenizer, Wording("chat")).eos_id != tokenizer.eos_token_id == pytest.approx(2)
