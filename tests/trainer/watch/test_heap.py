"""Freed memory is kept: counted in pages that the system has to make."""

import subprocess
import sys

from tests.conftest import ROOT

PAGES = """
import resource
import numpy as np
from trainer.watch.heap import keep_freed_memory
kept = {keep} and keep_freed_memory()

def layers():  # blocks of 12 MiB that are there together, as activations are
    return [np.ones(3 * 2**20, np.float32) for _ in range(8)]

layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    layers()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES.format(keep=keep)], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    assert kept == str(keep)
    return int(count)


def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    assert pages(keep=True) < 100
    assert pages(keep=False) > 1000  # the twin
