"""What the planner says about the runs that docs/cluster.md walks through: python -m benchmarks.plan_examples

Writes benchmarks/results/plan_examples.json. Everything in it is modelled; nothing is run, no GPU is needed.
"""

from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result_file
from cluster.cost.chips import make_hardware, parse_gpus
from cluster.plan import question_of, refuse_hopeless
from cluster.plan_text import offer_dict
from cluster.setups import advise
from console import UserError
from experiment import load_experiment

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
LARGE_STEPS = [
    "data.counts={train_documents: 200000}",
    "data.tokens_each={train_documents: 500}",
    "arms={cpt: {stages: [{mix: {train_documents: 1}, epochs: 1, batch_tokens: 1048576, rate: 1.0e-5, loss: token}]}}",
    "exam.compare_to=cpt",
]
"""A hundred million tokens of news, a million a step."""
CASES: dict[str, tuple[str, str, float | None, list[str]]] = {
    "7B, the paper's eight arms, 8×A100-80G": ("wiki2023_llama2_7b", "8xA100-80G", None, []),
    "7B, the paper's eight arms, 1×A100-80G with 512 GiB of host memory": ("wiki2023_llama2_7b", "1xA100-80G", 512, []),
    "70B, the paper's six arms, 64×H100": ("wiki2023_llama2_70b", "64xH100", None, []),
    "70B, 100 million tokens at a million a step, 64×H100": ("wiki2023_llama2_70b", "64xH100", None, LARGE_STEPS),
    "70B, 8×A100-80G": ("wiki2023_llama2_70b", "8xA100-80G", None, []),
}
_KEPT = ("set_up", "num_gpus", "gpu_gib", "host_gib", "disk_gib", "tokens_per_gpu_and_micro_step", "break_even_tokens")
_KEPT += ("tokens_per_s", "tokens_per_s_per_gpu", "hours", "phases", "overrides")


def example(name: str, gpus: str, host_gib: float | None, overrides: list[str]) -> dict[str, Any]:
    """The recommended set-up, the best on each number of GPUs, or why nothing fits."""
    experiment = load_experiment(EXPERIMENTS / f"{name}.yaml", overrides)
    hardware = make_hardware(*parse_gpus(gpus), host_gib=host_gib)
    question = question_of(experiment, hardware)
    advice = advise(question, hardware)
    found: dict[str, Any] = {"tokens": question.workload.tokens, "steps": question.workload.steps, "stages": len(question.workload.stages)}
    try:
        refuse_hopeless(advice, hardware)
    except UserError as error:
        return {**found, "refused": str(error)}
    by_count = [{key: value for key, value in offer_dict(one, None).items() if key in _KEPT} for one in advice.by_count]
    assert advice.recommended is not None
    return {**found, "recommended": advice.recommended.hardware.num_gpus, "by_count": by_count}


def main() -> None:
    figures = {title: example(*case) for title, case in CASES.items()}
    refused = [title for title, found in figures.items() if "refused" in found]
    write_result_file("plan_examples", figures, {"modelled": True}, refused == ["70B, 8×A100-80G"])


if __name__ == "__main__":
    main()
