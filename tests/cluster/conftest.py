"""A real cluster on one machine, and a clean copy of the checkout."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.machines import Machines, head_node

TOKEN = "fedcba9876543210" * 4


@pytest.fixture(scope="package")
def machines() -> Iterator[Machines]:
    """A head with 1 CPU and two nodes with 2 logical CPUs each."""
    with head_node(TOKEN, cpus=1) as found:
        for name in ("one", "two"):
            found.add(name, 2)
        yield found


@pytest.fixture(scope="package")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows of the checkout, and nothing else: no .venv, no runs, no caches."""
    target = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target
