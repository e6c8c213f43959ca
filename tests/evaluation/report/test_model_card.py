"""Model cards, and scores to trackers."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from console import UserError
from evaluation.benchmarks_config import SinksConfig
from evaluation.report import sinks
from evaluation.report.model_card import model_card
from tests.evaluation.report.test_page import made, trained

FRAMING = {"template": "pit", "begins": ["<s>"], "ends": "</s>"}


def test_card_says_what_where_from_how_good_and_how_to_use() -> None:
    card = model_card(trained(made()), "pit", "meta/llama", "abc123", "runs/x/stages/k3/hf", FRAMING)
    assert card.startswith("---\nbase_model: meta/llama\n")
    assert "vllm serve runs/x/stages/k3/hf" in card and "`abc123`; seed 0" in card
    assert "3. test\\_documents: 4 steps, 40 tokens, rate 0.004 (plan `hash of pit `)" in card
    assert "| test | 75.0 (50–100) | 75.0 (50–100) | 4 |" in card
    assert "no longer answers" not in card
    assert "`Question: … Answer:`" in card and "puts `<s>` before every text; answers end with `</s>`" in card
    chat, alpaca = (
        model_card(trained(made()), "pit", "m", "a", "h", {"template": template, "begins": [], "ends": "<|im_end|>"})
        for template in ("chat", "alpaca")
    )
    assert "chat template" in chat and "Nothing stands before a text; answers end with `<|im_end|>`." in chat and "Question: …" not in chat
    assert "### Instruction:\n…\n\n### Response:" in alpaca
    forgetful = {**trained(made()), "lost": {"pit": {"known": 10, "lost": 9}}}
    assert "Of 10 older questions that the base answered it no longer answers 9." in model_card(forgetful, "pit", "m", "a", "h", FRAMING)


def test_metrics_leave_out_missing_arms() -> None:
    found = sinks.metrics(made())
    assert set(found) == {"base", "standard", "pit"}
    assert (found["pit"]["test_em"], found["pit"]["test_em_low"], found["pit"]["steps"]) == (0.75, 0.5, 7)


def test_a_tracker_that_is_not_installed_is_refused_before_the_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"exam\.sinks\.wandb: the package wandb is not installed"):
        sinks.check(SinksConfig(wandb="project"))
    sinks.check(SinksConfig())


def test_mlflow_gets_one_run_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder in mlflow's place: the package is no dependency."""
    told: list[Any] = []

    class Run:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def start_run(run_name: str) -> Run:
        told.append(run_name)
        return Run()

    stand_in = SimpleNamespace(
        set_tracking_uri=told.append, set_experiment=told.append, start_run=start_run, log_params=told.append, log_metrics=told.append
    )
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)  # type: ignore[arg-type]
    sinks.send(made(), SinksConfig(mlflow="file:///x"))
    assert told[:3] == ["file:///x", "demo", "demo/base"]
    assert json.dumps(told).count("test_em_low") == 3
    told.clear()
    sinks.send(made(), SinksConfig())
    assert told == []
