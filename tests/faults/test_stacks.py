"""Stacks of a process that works on while it writes them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faults.promises import F5
from trainer.watch import stacks
from trainer.watch.stacks import write_stacks

BUSY = """
import json, sys, threading, time
import numpy as np
from trainer.watch import stacks

def rows():
    while True:
        yield np.concatenate([np.arange(10), np.arange(5)]).mean()

def run_stage():
    print(json.dumps(stacks.threads(threading.get_native_id())), flush=True)
    return sum(rows())

stacks.answer(open(sys.argv[1], "a"))
for n in range(3):
    threading.Thread(target=time.sleep, args=(600,), name=f"waits-{n}").start()
threading.Thread(target=run_stage, name="training").start()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A heartbeat of a process one of whose threads never stands still."""
    written = tmp_path / "stacks.txt"
    with subprocess.Popen([sys.executable, "-c", BUSY, str(written)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield {"pid": process.pid, "stacks": str(written), "threads": json.loads(process.stdout.readline())}
        finally:
            alive = process.poll() is None
            process.kill()
    assert alive, "the process died of being asked"


@F5
def test_stacks_are_whole(busy: dict[str, Any]) -> None:
    """The dump of all threads by one of them broke off, or killed the process, about once in 200 times."""
    for _ in range(100):
        write_stacks([busy])
    asked = Path(busy["stacks"]).read_text().split("\nthread ")[1:]
    trains = [text for text in asked if text.startswith("training ")]
    assert asked[0] == trains[0] and len(trains) == 100 and len(asked) == 100 * len(busy["threads"]) == 500
    assert all("in run_stage" in text and "in _bootstrap\n" in text for text in trains), "from the row to the thread's beginning"
    assert all("most recent call first" in text for text in asked)


@F5
def test_a_signal_that_shows_nowhere_is_waited_for(busy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that the kernel let wait between taking its signal and blocking it was held to have written: its stack stood under the next name."""

    def blocks(pid: int, thread: int) -> bool:
        """Not whether it is pending: the moment in between made as long as the wait for a processor is."""
        mask = re.search(r"^SigBlk:\s*(\w+)", Path(f"/proc/{pid}/task/{thread}/status").read_text(), re.MULTILINE)
        return mask is not None and bool(int(mask[1], 16) >> (signal.SIGUSR1 - 1) & 1)

    monkeypatch.setattr(stacks, "_writes", blocks)
    for _ in range(20):
        write_stacks([busy])
    asked = Path(busy["stacks"]).read_text().split("\nthread ")[1:]
    assert len(asked) == 100 and all(text.count("most recent call first") == 1 for text in asked)


@F5
def test_a_stopped_process_shows_where_it_stood(busy: dict[str, Any]) -> None:
    os.kill(busy["pid"], signal.SIGSTOP)
    began = time.monotonic()
    write_stacks([busy, {**busy, "threads": [["has ended", 2**22 - 1]]}])
    assert "in run_stage" in Path(busy["stacks"]).read_text() and time.monotonic() - began < 2
