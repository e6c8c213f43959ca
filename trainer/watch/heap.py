"""On CPUs: memory that a step frees is kept for the next one, instead of being given back to the system and asked for again.

glibc maps every block above a threshold for itself, and unmaps it when it is freed; the system clears the pages of the next one as they are first touched. A layer's activations are such blocks: of a
step's element-wise operations a third of the time went there. The values stay as they are.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
_LARGEST = 32 * 2**20
"""Bytes: glibc takes no more. Larger blocks (logits, gradients of embeddings, weights that are read) still come and go."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """For this process; False where the C library knows no such settings. It holds its peak of small blocks from then on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _NEVER))


def give_back_freed_memory() -> None:
    """Once a process has trained what it had to. One of a search waits between its looks, beside others that train: after three looks at a 135M model it held 10 GiB."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
