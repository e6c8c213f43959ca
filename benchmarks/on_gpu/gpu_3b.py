"""A random Llama of 3.2 billion parameters on one GPU: python -m benchmarks.gpu_3b [--tiny]

Rows, steps and peers are those of benchmarks.gpu_1b.
Goal: at least 48 % MFU, at least 1.5 times transformers' Trainer. Writes benchmarks/results/gpu_3b.json.
"""

from benchmarks import gpu
from console import door


def main(argv: list[str] | None = None) -> None:
    gpu.compare_documents("gpu_3b", __doc__, "3b", 0.48, argv)


if __name__ == "__main__":
    door(main)
