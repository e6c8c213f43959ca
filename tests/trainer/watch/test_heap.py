"""Freed memory is kept while a process trains, and given back when it has: counted in pages that the system has to make, and in those that it holds."""

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


HELD = """
import numpy as np
from trainer.watch.heap import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
pages = lambda: int(open("/proc/self/statm").read().split()[1])
before = pages()
[np.ones(3 * 2**20, np.float32) for _ in range(40)]
if {give_back}:
    give_back_freed_memory()
print(pages() - before)
"""


def held(give_back: bool) -> int:
    done = subprocess.run([sys.executable, "-c", HELD.format(give_back=give_back)], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_process_that_waits_holds_nothing_that_it_freed() -> None:
    assert held(give_back=True) < 2_000
    assert held(give_back=False) > 100_000  # the twin: 480 MiB and more
