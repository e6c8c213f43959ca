"""trainer.shapes and trainer.row_tokens: auto, as they are resolved for a stage."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.config import Mix, Stage
from data.curriculum.plan import Plan
from trainer.config import MOST_ROW_TOKENS, TrainerConfig
from trainer.jobs.prepare import _write_plan, auto_row_tokens
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


def test_rows_as_long_as_they_stay_full(capsys: pytest.CaptureFixture[str]) -> None:
    def chosen(has_gpu: bool) -> int:
        return auto_row_tokens({"a": [STAGE]}, {"a": [PLAN]}, STORE, TrainerConfig(row_tokens="auto", num_workers=1), has_gpu, 4096)

    assert (chosen(False), chosen(True)) == (4096, MOST_ROW_TOKENS)
    assert "trainer.row_tokens: auto takes 16,384" in capsys.readouterr().err
    assert TrainerConfig(row_tokens="auto").row_bound == MOST_ROW_TOKENS and TrainerConfig().row_bound == 4096
