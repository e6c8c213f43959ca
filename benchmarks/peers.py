"""Libraries that are measured against and that the environment lacks: `make peers` puts them into .peers."""

import sys
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
