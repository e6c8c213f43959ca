"""Shared by all tests: one Ray cluster a run, made data, and commands run as a user would."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.groups import Groups

pytest_plugins = ["tests.faults.table"]

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of the one Ray cluster of this run: 8 logical CPUs."""
    import ray

    env_vars = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    context = ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=300 * 2**20, runtime_env={"env_vars": env_vars}
    )
    yield context.address_info["address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def groups() -> Iterator["Groups"]:
    from tests.groups import Groups

    server = Groups()
    yield server
    server.close()


@pytest.fixture
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command("trainer", "x.yaml", env={...})`: python -m trainer x.yaml from the checkout, with a time limit."""

    def run(room: str, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", room, *arguments],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            text=True,
            capture_output=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not on this machine")
    return SHARED_DATA
