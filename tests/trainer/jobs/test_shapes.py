"""trainer.shapes and trainer.row_tokens: auto, as they are resolved for a stage."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from console import UserError
from data.config import Mix, Stage
from data.curriculum.catalogue import declared_catalogue
from data.curriculum.plan import Plan
from trainer.config import MOST_ROW_TOKENS, TrainerConfig
from trainer.jobs.prepare import _write_plan, auto_row_tokens, refuse_longer_items
from trainer.jobs.shapes import shapes_of

STAGE = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=150, rate=1.0)
PLAN = Plan(np.arange(4050), np.arange(0, 4051, 150), "made")
STORE: Any = SimpleNamespace(sha256="made", lengths=np.full(4050, 100))
STORE.worded = lambda wording: STORE


def test_which_shapes(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(plan_path=str(_write_plan(PLAN, STORE, tmp_path)), capacity=8192, longest=8192)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    exact = [("auto", cpu, False), ("exact", cuda, False), ("auto", cuda, True)]
    assert all(shapes_of(wanted, device, job, 1, one_item).static is None for wanted, device, one_item in exact)  # type: ignore[arg-type]
    found = shapes_of("auto", cuda, job, 1, False)
    assert found == shapes_of("static", cpu, job, 1, False) and found.static and found.fill >= 0.97
    assert found.in_words().startswith("shapes: static, rows of ") and max(found.static.lengths) >= 8100  # 81 items of 100 tokens
    rows = [{"step": 0}]
    assert list(shapes_of("exact", cpu, job, 1, False).rows(iter(rows))) == rows


def test_rows_hold_what_is_read_behind_a_document() -> None:
    """Questions of 30 tokens behind documents of 3,000, and documents that a teacher reads twice: 6,000."""
    catalogue = declared_catalogue({"train_documents": 4, "train_questions": 4})
    store: Any = SimpleNamespace(sha256="made", lengths=np.array([3000] * 4 + [30] * 4))
    store.worded = lambda wording: store
    stage = {"mix": {"train_documents": 1, "train_questions": 1}, "epochs": 1, "batch_items": 8, "rate": 1.0}
    plan = Plan(np.arange(8), np.array([0, 8]), "made")

    def chosen(longest: int = 2**20, **more: Any) -> int:
        trained = [(Stage.model_validate({**stage, **more}), plan)]
        return auto_row_tokens(trained, store, 0, longest, catalogue if more else None)

    assert (chosen(), chosen(passages={"document": 0.5}), chosen(teach={"on": "questions"})) == (4096,) * 3
    assert chosen(teach={"on": "documents"}) == 6000 and chosen(5000, teach={"on": "documents"}) == 5000


def test_a_further_model_with_fewer_positions_is_refused() -> None:
    catalogue = declared_catalogue({"train_documents": 2})
    store: Any = SimpleNamespace(item_lengths=np.array([100, 3000]))
    refuse_longer_items(store, catalogue, 3000, 4096, "teacher")
    refuse_longer_items(store, catalogue, 2048, 2048, "teacher")  # documents are split at 2,048 for all
    with pytest.raises(UserError, match=r"models.teacher: its positions hold 2048 tokens, and train_documents/1 has 3000 \(so 1 items\)"):
        refuse_longer_items(store, catalogue, 2048, 4096, "teacher")


def test_rows_as_long_as_they_stay_full(capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(gpus: int) -> int:
        return auto_row_tokens([(STAGE, PLAN)], STORE, gpus, 4096, None)

    assert (chosen(0), chosen(1)) == (4096, MOST_ROW_TOKENS)
    assert "trainer.row_tokens: auto takes 16,384" in capsys.readouterr().err
    assert TrainerConfig(row_tokens="auto").row_bound == MOST_ROW_TOKENS and TrainerConfig().row_bound == 4096
