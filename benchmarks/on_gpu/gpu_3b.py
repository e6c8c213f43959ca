"""A random Llama of 3.2 billion parameters on one GPU: python -m benchmarks.gpu_3b [--tiny]

Documents of a thousand tokens, packed into rows of 4,096, about eight a step and other ones at every step; bf16 with fp32 masters: our step (DeepSpeed
ZeRO-1, layers compiled), transformers' Trainer and a plain torch loop on the same rows, and ours on the mix; each in a process of its own.
Goal: at least 48 % MFU, at least 1.5 times transformers' Trainer. Writes benchmarks/results/gpu_3b.json.
"""

from benchmarks import gpu
from console import door


def main(argv: list[str] | None = None) -> None:
    gpu.compare_documents("gpu_3b", __doc__, "3b", 0.48, argv)


if __name__ == "__main__":
    door(main)
