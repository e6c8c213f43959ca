"""Chat templates are programs in somebody else's model folder: rendered in a process of their own, with a time limit.

transformers renders them in Jinja's sandbox, which runs no code and opens no file, but knows no end: nested loops would hold the driver for ever,
one product of a text take its memory.
"""

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 10.0
MOST_CHARACTERS = 2**20


class TemplateFault(ValueError):
    """Why a template was not rendered."""


def limited(render: Callable[[], list[str]], limit_s: float = LIMIT_S) -> list[str]:
    """What `render` returns, computed in a fork. TemplateFault where it takes longer, dies, raises, or says more than MOST_CHARACTERS.

    A fork, because the libraries that render take seconds to import; it does nothing but render, so no lock of another thread is asked for.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(render, reading, writing)
    os.close(writing)
    try:
        said = _read(reading, time.monotonic() + limit_s)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if said is None:
        raise TemplateFault(f"it did not end within {limit_s:g} s")
    try:
        result = json.loads(said)
    except ValueError:
        raise TemplateFault("the process that rendered it died") from None
    if "fault" in result:
        raise TemplateFault(result["fault"])
    return list(result["texts"])


def _answer(render: Callable[[], list[str]], reading: int, writing: int) -> None:
    """The child: never returns."""
    try:
        os.close(reading)
        result: dict[str, Any]
        try:
            texts = render()
            too_long = sum(map(len, texts)) > MOST_CHARACTERS
            result = {"fault": f"it says more than {MOST_CHARACTERS:,} characters"} if too_long else {"texts": texts}
        except BaseException as error:
            result = {"fault": (str(error).splitlines() or [type(error).__name__])[0][:300]}
        left = json.dumps(result).encode()
        while left:
            left = left[os.write(writing, left) :]
    finally:
        os._exit(0)


def _read(reading: int, until: float) -> bytes | None:
    """All that the child writes; None where it takes too long."""
    said = b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        piece = os.read(reading, 2**16)
        if not piece:
            return said
        said += piece
