"""A random Llama of 1.24 billion parameters on one GPU: python -m benchmarks.gpu_1b [--tiny]

Rows of 4,096 tokens, four a step, bf16 with fp32 masters: our step (DeepSpeed ZeRO-1), a plain torch loop, transformers' Trainer; each in a process
of its own. Goal: at least 45 % MFU, at least 1.3 times transformers' Trainer. Writes benchmarks/results/gpu_1b.json.
"""

from benchmarks import gpu
from console import door


def main(argv: list[str] | None = None) -> None:
    gpu.compare_full_rows("gpu_1b", __doc__, "1b", argv)


if __name__ == "__main__":
    door(main)
