"""The collector of garbage is off while libraries are imported, and leaves out what they made; nothing else is kept for it."""

import gc
import subprocess
import sys
import weakref

import pytest

from data.ground.imports import importing
from tests.conftest import ROOT

ENDS = "import gc; from data.ground.imports import importing\nwith importing():\n    import xml.dom.minidom\nprint(gc.isenabled(), gc.get_freeze_count() > 1000)"


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_what_was_imported_is_left_out_until_the_process_ends() -> None:
    program = f"import atexit, gc\natexit.register(lambda: print(gc.get_freeze_count()))\n{ENDS}"  # registered first, so called last
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True", "0"], done


def test_where_nothing_is_imported_garbage_is_collected() -> None:
    """A search imports what it has before each attempt: what a failed one held was kept for the process's life."""
    left = weakref.ref(Cycle())
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled() and left() is not None
    gc.collect()
    assert left() is None


def test_a_failed_import_turns_it_on_again() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
