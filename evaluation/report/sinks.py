"""Scores to MLflow or Weights & Biases, where exam.sinks asks for them. Their packages are imported only then; keys are never read here."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from console import UserError
from evaluation.benchmarks_config import SinksConfig


def check(config: SinksConfig) -> None:
    """UserError for a tracker whose package is not installed: told before the exam, not after it."""
    for package in ("mlflow", "wandb"):
        if getattr(config, package) and find_spec(package) is None:
            raise UserError(f"exam.sinks.{package}: the package {package} is not installed; pip install {package}, or leave it empty")


def send(report: Mapping[str, Any], config: SinksConfig) -> None:
    """One run per arm, named `experiment/arm`, with its scores as metrics."""
    if config.mlflow:
        mlflow = importlib.import_module("mlflow")
        mlflow.set_tracking_uri(config.mlflow)
        mlflow.set_experiment(report["experiment"])
        for name, values in metrics(report).items():
            with mlflow.start_run(run_name=f"{report['experiment']}/{name}"):
                mlflow.log_params({"seed": report["seed"], "arm": name})
                mlflow.log_metrics(values)
    if config.wandb:
        wandb = importlib.import_module("wandb")
        for name, values in metrics(report).items():
            facts = {"seed": report["seed"], "arm": name}
            run = wandb.init(project=config.wandb, group=report["experiment"], name=f"{report['experiment']}/{name}", config=facts)
            run.log(values)
            run.finish()


def metrics(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of each scored arm "test_em", "test_em_low", "test_em_high", "train_recall", …, "document_loss", "steps", "tokens"."""
    found: dict[str, dict[str, float]] = {}
    for name, arm in report["arms"].items():
        if arm["status"] != "scored":
            continue
        values: dict[str, float] = {}
        for kind, scores in arm["sets"].items():
            for metric in ("em", "recall", "f1", "rouge_l"):
                values |= {f"{kind}_{metric}{end}": scores[metric][key] for key, end in (("mean", ""), ("low", "_low"), ("high", "_high"))}
        if arm.get("document_loss"):
            values["document_loss"] = arm["document_loss"]["mean"]
        values |= {key: arm[key] for key in ("steps", "tokens") if arm.get(key) is not None}
        found[name] = values
    return found
