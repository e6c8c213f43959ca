"""A random Llama of 1.24 billion parameters on one GPU: python -m benchmarks.gpu_1b [--tiny]

Documents of a thousand tokens, packed into rows of 4,096, about eight a step and other ones at every step; bf16 with fp32 masters: our step (layers
compiled; beside it by DeepSpeed's ZeRO-1), transformers' Trainer and a plain torch loop on the same rows, and ours on the mix; each in a process of its own.
Goal: at least 50 % MFU, at least 1.5 times transformers' Trainer. Writes benchmarks/results/gpu_1b.json.
"""

from benchmarks import gpu
from console import door


def main(argv: list[str] | None = None) -> None:
    gpu.compare_documents("gpu_1b", __doc__, "1b", 0.5, argv)


if __name__ == "__main__":
    door(main)
