"""Importing large libraries fast."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of torch, transformers, vLLM and the like: garbage is not collected, and what is there then is left out of later collections.

    They make half a million objects that stay. Collecting on the way takes a quarter of the imports' time and finds nothing, and every full collection after
    it, which engines ask for as they start and end, would go through all of them again: a third of a second each (dev/LOG.md).
    Cycles that are garbage already when it ends are never collected: have it around imports at a process's start, not around work. Where all is imported
    already it does nothing.
    """
    collects, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            leave_out()
        if collects:
            gc.enable()


def leave_out() -> None:
    """What is there now, of later collections, but for the one as the process ends: triton's bindings (nanobind) would tell people of hundreds of leaks."""
    if not gc.get_freeze_count():
        atexit.register(gc.unfreeze)
    gc.freeze()
