"""Optimiser states in host memory: python -m benchmarks.gpu_offload [--tiny]

A random Llama of 8.03 billion parameters, bf16, recomputed activations, rows of 4,096; steps of 64k and of 256k tokens: DeepSpeed ZeRO-2 with fp32
masters and moments on the host, against states on the GPU (benchmarks/on_gpu/gpu_8b.py). Host memory: 16 bytes a parameter, 128 GB.
Goal: at least 70 % of the speed with states on the GPU at 256k tokens. Writes benchmarks/results/gpu_offload.json.
"""

from typing import Any

from benchmarks.gpu_8b import ours as states_on_gpu
from benchmarks.gpu_steps import Workload

from benchmarks import gpu, gpu_steps
from console import door

GOAL = 0.7


def offloaded(setting: gpu_steps.Setting, workload: Workload) -> gpu_steps.Step:
    return gpu_steps.ours(setting, workload, zero_stage=2, offload=True)


def run(make: gpu_steps.Make, num_rows: int, tiny: bool) -> dict[str, Any]:
    shape = gpu_steps.TINY if tiny else gpu_steps.SHAPES["8b"]
    steps = 2 if tiny else 3 if num_rows > 16 else 4
    work = gpu.documents(steps, 2, 64, shape.vocabulary) if tiny else gpu.documents(steps, num_rows, 4096, shape.vocabulary)
    return gpu.measure(gpu_steps.Setting(shape, tiny, gradient_checkpointing=True), make, work)


def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    shares = {f"share_{size}": gpu.over(figures, f"offload_{size}", f"gpu_{size}") for size in ("64k", "256k")}
    return shares, (shares["share_256k"] or 0) >= GOAL


def main(argv: list[str] | None = None) -> None:
    kinds = {
        "offload_64k": lambda tiny, steps: run(offloaded, 16, tiny),
        "gpu_64k": lambda tiny, steps: run(states_on_gpu, 16, tiny),
        "offload_256k": lambda tiny, steps: run(offloaded, 64, tiny),
        "gpu_256k": lambda tiny, steps: run(states_on_gpu, 64, tiny),
    }
    gpu.compare("gpu_offload", __doc__, kinds, {"share_256k": f">= {GOAL}"}, judge, argv)


if __name__ == "__main__":
    door(main)
