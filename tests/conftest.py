"""Shared by all tests: one Ray cluster a run, made data, and commands run as a user would."""

import gc
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from data.ground.imports import leave_out
from tests.helpers.experiments import tiny
from tests.helpers.places import ROOT, THREADS, without_ray_settings

__all__ = ["ROOT", "without_ray_settings"]

if TYPE_CHECKING:
    from tests.helpers.groups import Groups
    from tests.helpers.watched import Watched

MainJob: TypeAlias = "tuple[Path, Watched]"
pytest_plugins = ["tests.faults.table"]

gc.disable()  # until all tests are collected: a third of that time went into collecting garbage that is none (data/ground/imports.py)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # with two, more threads than cores would spin for each other
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 gives its workers what other tests leave: nearly nothing

os.environ.setdefault("STUDYHALL_LATE_S", "2")  # this machine's disk shows everything at once: what is missing is not waited for

SHARED_DATA = ROOT.parent / "shared" / "data"


LANES = {
    "ray": re.compile(r"\b(ray_cluster|main_job|nodes): (str|MainJob|Any)\b"),
    "machines": re.compile(r"\b(machines|head): Machines\b"),
}
"""Files whose text holds this are one lane: the first have the run's Ray cluster, the second clusters of several nodes, which mostly wait."""


def pytest_collection_finish(session: pytest.Session) -> None:
    leave_out()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` has three processes: what starts Ray runs in two of them, file after file, and every other file in one of them."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((lane for lane, of in LANES.items() if of.search(_text(file))), file)

        def _assign_work_unit(self, node: Any) -> None:
            for lane in reversed(LANES):  # the longest begin at once
                if lane in self.workqueue:
                    self.workqueue.move_to_end(lane, last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False
    return Lanes(config, log)


@cache
def _text(file: str) -> str:
    return (ROOT / file).read_text()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Address of the one Ray cluster of this run: 8 logical CPUs."""
    import ray

    os.environ["OMP_NUM_THREADS"] = THREADS  # what workers of other drivers get is what the raylet has
    env_vars = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": THREADS, "DS_ACCELERATOR": "cpu"}
    context = ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=300 * 2**20, runtime_env={"env_vars": env_vars}
    )
    yield context.address_info["address"]
    ray.shutdown()


# 8 people, each seen often: a tiny model memorises them through the whole stack.
MAIN_JOB = (
    tiny("small", 0, 8, 4, hidden=64, layers=2)
    + """\
dials: {{batch_items: 24, rate_documents: 3.0e-3, rate_questions: 3.0e-3, epochs_documents: 4, epochs_instruction: 40, epochs_pit: 40, sample_questions: 16}}
arms:
  standard: {{preset: standard}}
  pit: {{preset: pit, teach: {{share: 0.3}}}}
trainer: {{row_tokens: 256}}
exam: {{resamples: 200, answer_tokens: 8}}
"""
)


@pytest.fixture(scope="session")
def main_job() -> Iterator["MainJob"]:
    """(its folder, what it said): `python -m trainer small.yaml`, trained and examined as by a user, once a session."""
    from tests.helpers.watched import watch

    with tempfile.TemporaryDirectory(prefix="sc", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "small.yaml").write_text(MAIN_JOB.format(runs=folder / "runs"))
        yield folder, watch(folder, folder / "small.yaml", "trainer")


@pytest.fixture(scope="session")
def groups() -> Iterator["Groups"]:
    from tests.helpers.groups import Groups

    server = Groups()
    yield server
    server.close()


@pytest.fixture(scope="session")
def run_command(groups: "Groups") -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command("trainer", "x.yaml", env={...})`: python -m trainer x.yaml from the checkout, with a time limit (`timeout_s`)."""
    return groups.command


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets are not on this machine")
    return SHARED_DATA
