"""Libraries that are measured against and that the environment lacks: `make peers` puts them into .peers; and how transformers' Trainer is timed."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from console import UserError

FOLDER = Path(__file__).resolve().parent.parent / ".peers"


def peer(module: str) -> Any:
    """A module of a peer; UserError where it is not there. The environment's own packages win."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module}: {error}; `make peers` installs what the benchmarks measure against") from None


def step_clock(wait: Callable[[], object] = lambda: None) -> Any:
    """A callback of transformers' Trainer whose `spent` is the seconds of the last step, `wait()` at its end with them."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began, spent = 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            self.spent = time.perf_counter() - self.began

    return Clock()
