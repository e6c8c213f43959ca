"""What the threads of a training process are doing, written by themselves into logs/stacks-<rank>.txt when another process of their machine asks.

Each thread is signalled alone and writes its own stack, in its signal handler. One that wrote those of all (faulthandler's all_threads) would walk
frames that the others go on pushing and popping meanwhile: of a loop over numpy the dump broke off in a frame that was gone, or the
process died of it (SIGSEGV, once in about 200 dumps).
"""

import ctypes
import faulthandler
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

_THREAD_S, _ALL_S = 3.0, 15.0
"""For one thread, and for all of a node: one that waits for a disk for ever writes nothing."""
_libc = ctypes.CDLL(None)


def answer(file: TextIO) -> None:
    """From now on every thread of this process writes its stack into `file` on SIGUSR1."""
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)


def answer_no_more() -> None:
    faulthandler.unregister(signal.SIGUSR1)


def threads(first: int | None) -> list[tuple[str, int]]:
    """(name, the system's number) of this process's threads; that of number `first` before all others."""
    found = [(thread.name, thread.native_id) for thread in threading.enumerate() if thread.native_id]
    return sorted(found, key=lambda thread: thread[1] != first)


def write_stacks(beats: list[dict[str, Any]]) -> None:
    """Asks the processes of these heartbeats, all of this machine, and waits until they have written; what trains before all else. A stopped
    process shows where it stood and runs again."""
    deadline = time.monotonic() + _ALL_S
    for part in (slice(0, 1), slice(1, None)):
        for beat in beats:
            with suppress(OSError), Path(beat["stacks"]).open("a") as file:
                for name, thread in beat["threads"][part]:
                    if time.monotonic() < deadline:
                        file.write(f"\nthread {name} of process {beat['pid']}\n")
                        file.flush()
                        _ask(beat["pid"], thread, file.fileno())


def _ask(pid: int, thread: int, written: int) -> None:
    """Until the file `written` has grown and the thread has left its handler: between taking a signal off the pending ones and blocking it for
    the handler, a thread that the kernel lets wait there shows neither."""
    before = os.fstat(written).st_size
    if _libc.tgkill(pid, thread, int(signal.SIGUSR1)):
        return  # it has ended
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + _THREAD_S
    while ((_lives(pid, thread) and os.fstat(written).st_size == before) or _writes(pid, thread)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _lives(pid: int, thread: int) -> bool:
    return Path(f"/proc/{pid}/task/{thread}").exists()


def _writes(pid: int, thread: int) -> bool:
    """Whether the signal is still pending or, as in its handler, blocked."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        masks = re.findall(r"^Sig(?:Pnd|Blk):\s*(\w+)", status, re.MULTILINE)
        return any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in masks)
    return False
