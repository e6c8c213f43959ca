"""Modules of the build that PYTHONPATH names, this one or an older one: before rooms had folders `trainer.store.weights` was `trainer.weights`.

For scripts that are run by their path with PYTHONPATH set. They put the folder `benchmarks/` behind `sys.path` and import this by its bare name, for the
package `benchmarks` is that build's.
"""

from importlib import import_module
from typing import Any

_RENAMED = {"trainer.store.stages": "trainer.store", "data.rows.flat_rows": "data.rows", "data.rows.token_store": "data.tokens"}


def of(name: str) -> Any:
    """The module that is called so here. ModuleNotFoundError where that build has none."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        room, last = name.partition(".")[0], name.rpartition(".")[2]
        return import_module(_RENAMED.get(name, f"{room}.{last}"))
