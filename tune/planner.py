"""The one place that asks the planner what a search would take."""

from typing import Any

from experiment import Experiment


def plan_cost(experiment: Experiment, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """{"gpu_hours", "cost", "in_words"} of these stages (steps and tokens each, every one once)."""
    return {"gpu_hours": None, "cost": None, "in_words": "GPU-hours and cost: no planner"}
