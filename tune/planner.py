"""The one place that asks the planner (cluster/plan.py) what a search would take."""

import importlib
import importlib.util
from typing import Any

from console import UserError
from data.config import Stage
from data.curriculum.arm_config import Arm
from experiment import Experiment


def plan_cost(experiment: Experiment, arms: dict[str, list[Stage]], gpus: str | None) -> dict[str, Any]:
    """{"gpu_hours", "cost", "in_words"} of all trials on these GPUs ("8xA100-80G"; None: this machine), training only, nothing stopped early.

    `arms`: of each trial its stages after the base; what begins alike counts once. Settings of the trainer are the experiment's own.
    """
    nothing = {"gpu_hours": None, "cost": None}
    if importlib.util.find_spec("cluster.plan") is None:
        return {**nothing, "in_words": "GPU-hours and cost: no planner"}
    search = experiment.search
    assert search is not None
    whole = experiment.model_copy(update={"arms": {id: Arm(stages=stages) for id, stages in arms.items()}, "search": None})
    try:
        found = importlib.import_module("cluster.plan").estimate(whole, gpus, search.price_per_gpu_hour or 0.0)
    except UserError as error:
        return {**nothing, "in_words": f"GPU-hours and cost: not planned: {error}"}
    if found.gpu_hours is None:
        return {
            **nothing,
            "in_words": "GPU-hours and cost: the speed of these machines is not known (python -m cluster plan X.yaml --measure)",
        }
    cost = found.cost if search.price_per_gpu_hour else None
    words = f"about {found.gpu_hours:,.1f} GPU-hours of training on {found.num_gpus} GPUs" + (
        f", a cost of {cost:,.2f}" if cost is not None else ""
    )
    return {"gpu_hours": found.gpu_hours, "cost": cost, "in_words": f"{words} (modelled, without early stopping and exams)"}
