"""Preflight's judgement on what nodes tell of themselves: what this machine cannot be made to be."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import probe
from cluster.checks import Line, Node, answering, shared_memory, versions
from cluster.cost.chips import GIB


@dataclass
class Told:
    """Nodes that have told this."""

    all: list[Node]


def node(host: str, **facts: Any) -> Node:
    told = {**copy.deepcopy(probe.facts()), "host": host, **facts}
    return Node(host, f"{host}.address", told, {"CPU": 2}, 0.1 * GIB)


def test_equal_nodes_are_good() -> None:
    line = versions(Told([node("a"), node("b")]))  # type: ignore[arg-type]
    assert line.good and "the same everywhere: python 3." in line.text


def test_version_skew_names_both_nodes() -> None:
    other = node("b")
    other.facts["versions"]["torch"] = "2.12.0"
    line = versions(Told([node("a"), other]))  # type: ignore[arg-type]
    assert line.good is False and "torch is " in line.text and "on a and 2.12.0 on b (b.address): install the same" in line.text


def test_nodes_that_agree_with_each_other_but_not_with_here() -> None:
    nodes = [node("a"), node("b")]
    for one in nodes:
        one.facts["versions"]["deepspeed"] = "0.18.0"
    line = versions(Told(nodes))  # type: ignore[arg-type]
    assert line.good is False and "deepspeed is" in line.text and "here and 0.18.0 on the nodes" in line.text


def test_a_container_with_dockers_shared_memory() -> None:
    line = shared_memory(Told([node("a", shm_bytes=4 * GIB), node("b", shm_bytes=64 * 2**20)]))  # type: ignore[arg-type]
    assert line.good is False and "/dev/shm on b has 0.06 GiB" in line.text and "--shm-size" in line.text
    assert shared_memory(Told([node("a", shm_bytes=4 * GIB)])).good  # type: ignore[arg-type]


def test_a_head_without_gpus_needs_no_memory_of_a_worker(tmp_path: Path) -> None:
    """64 GiB in the project's own definitions: preflight called every one of them too small. The twin: a worker of 64 GiB is."""
    from cluster.preflight import _memory
    from experiment import load_experiment

    experiment = load_experiment("experiments/wiki2023_llama2_7b.yaml", [f"runs={tmp_path}", "trainer.num_workers=8"])
    gpus = [{"name": "NVIDIA A100-SXM4-80GB", "bytes": int(79.1 * GIB), "used_bytes": 0}] * 8
    head, worker = node("head", ram_bytes=64 * GIB, gpus=[]), node("a", ram_bytes=900 * GIB, gpus=gpus)
    assert _memory(experiment, Told([head, worker]), 8, True)[1].good  # type: ignore[arg-type]
    small = _memory(experiment, Told([head, node("a", ram_bytes=64 * GIB, gpus=gpus)]), 8, True)[1]  # type: ignore[arg-type]
    assert small.good is False and "host memory a node" in small.text


def test_a_node_that_does_not_answer() -> None:
    silent = Node("b", "b.address", TimeoutError("no answer"), {}, 0)  # type: ignore[arg-type]
    line = answering(Told([node("a"), silent]))  # type: ignore[arg-type]
    assert line.good is False and "b.address does not run tasks (TimeoutError: no answer)" in line.text


def test_storage_that_is_not_writable_or_not_shared(tmp_path: Path) -> None:
    """The nodes' side of it: a mark by draft and rename, and marks of others that never come."""
    told = probe.write_mark(str(tmp_path))
    assert (tmp_path / told["name"]).read_text() == told["name"] and told["free_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == [told["name"]], "drafts stay behind"
    assert probe.read_marks(str(tmp_path), [told["name"]]) == []
    assert probe.read_marks(str(tmp_path), [told["name"], "elsewhere"], patience_s=0.1) == ["elsewhere"]
    assert "error" in probe.write_mark(str(tmp_path / "nowhere"))


def test_storage_is_measured(tmp_path: Path) -> None:
    """What every node writes and reads a second, added up; one process alone by the slowest of them. Nothing stays behind."""
    from cluster.checks import Nodes, storage_speed

    rates = probe.storage_rate(str(tmp_path), 2**21, 3)
    assert set(rates) == {"write", "read"} and min(rates.values()) > 0 and not list(tmp_path.iterdir())

    class Two(Nodes):
        def __init__(self) -> None:
            self.all = [node("a"), node("b")]

        def ask(self, function: Any, *arguments: Any) -> list[tuple[Node, Any]]:
            _, _, writers = arguments
            return [(one, {"write": writers * rate, "read": 9e9}) for one, rate in zip(self.all, (1e8, 2e8), strict=True)]

    found, line = storage_speed(Two(), tmp_path / "run")
    assert (
        found == {"process_bytes_per_s": 1e8, "storage_bytes_per_s": 2.4e9}
        and line.good
        and "0.1 GB/s a process, 2.4 GB/s together" in line.text
    )
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("good, begins", [(True, "ok    x: y"), (False, "WRONG x: y"), (None, "–     x: y")])
def test_lines(good: bool | None, begins: str) -> None:
    assert str(Line("x", good, "y")) == begins
