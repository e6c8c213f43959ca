"""Places where tests make a process fail on purpose: `STUDYHALL_FAIL=name=action[@n][,…]`; without it a call costs a look-up.

Actions: `kill` (SIGKILL of this process), `stop` (SIGSTOP), `raise`, `oom` (MemoryError with its size), `disk` (OSError: no space left),
`exit`, `sleep:SECONDS`. `@n` is the n-th call of the name. With
STUDYHALL_FAIL_ONCE=FILE an entry acts once only, over all processes and restarts; STUDYHALL_FAIL_RANK limits it to one rank.
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

_calls: Counter[str] = Counter()


def hit(name: str) -> str | None:
    """Acts as the environment says; the action's name where the caller must act itself (`nan`, `spike`, `flip`), else None."""
    listed = os.environ.get("STUDYHALL_FAIL")
    if not listed:
        return None
    _calls[name] += 1
    for entry in listed.split(","):
        wanted, _, action = entry.partition("=")
        action, _, turn = action.partition("@")
        if wanted != name or (turn and int(turn) != _calls[name]) or not _my_turn(entry):
            continue
        return _act(action, name)
    return None


def _my_turn(entry: str) -> bool:
    only = os.environ.get("STUDYHALL_FAIL_RANK")
    if only is not None and only != os.environ.get("RANK"):
        return False
    once = os.environ.get("STUDYHALL_FAIL_ONCE")
    if not once:
        return True
    try:
        os.close(os.open(Path(f"{once}.{entry.replace('/', '_')}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _act(action: str, name: str) -> str | None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "exit":
        os._exit(1)
    if action == "raise":
        raise RuntimeError(f"made to fail at {name}")
    if action == "oom":
        raise MemoryError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {2**40} bytes")
    if action == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
        return None
    return action
