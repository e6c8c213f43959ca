"""Compiled layers over the stages of a process, and what is refused before workers start."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from console import UserError
from tests.numerics.ranks.compiled_steps import engine_of, gradients, row
from trainer.config import TrainerConfig
from trainer.kernels import compiled
from trainer.kernels.compiled import CompiledLayers, Graphs
from trainer.step.set_up import StageEngine, with_compiled_layers
from trainer.step.switches import check_before_workers


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eight graphs a stage, traced and not built."""
    monkeypatch.setattr(compiled, "_cannot", {})
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "_MOST_GRAPHS", 8)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


def test_before_workers_the_engine_is_asked_that_they_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process trains without partition, whatever ZeRO stage is set; a machine without GPUs cannot speak for its workers."""
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    graphs = TrainerConfig(cuda_graphs=True, zero_stage=2)
    check_before_workers(graphs, 1, "bf16", False)  # torch here has no CUDA
    with pytest.raises(UserError, match=r"cuda_graphs: true needs a CUDA GPU \(this is cpu\)"):
        check_before_workers(graphs, 0, "bf16", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_before_workers(graphs, 1, "bf16", False)
    with pytest.raises(UserError, match=r"trainer.zero_stage 1, .*these are bf16, 2"):
        check_before_workers(graphs, 2, "bf16", False)


def test_stages_before_do_not_use_up_the_graphs(few: None) -> None:
    """Three stages of five lengths, eight graphs allowed a stage: the second failed and barred the architecture for the rest of the process. Too many in one are named."""
    engine, attention = engine_of("llama3", "by_item"), "by_item"

    def stage(lengths: range) -> CompiledLayers:
        layers = CompiledLayers(engine.module, static=True)
        for length in lengths:
            gradients(engine, [row([length])], attention)
        layers.close()
        return layers

    for number in range(3):
        done = stage(range(20 + 5 * number, 25 + 5 * number))
        assert not done.why_not and done.layers == []  # nothing of the stage is held
    assert stage(range(100, 150)).why_not == "rows have had more than 8 shapes"


@pytest.mark.parametrize("attention, dynamic", [("padded_sdpa", True), ("by_item", False)])
def test_buckets_are_no_static_shapes(few: None, tmp_path: Path, attention: str, dynamic: bool) -> None:
    """Rows of one length have other buckets: each row was a graph of its own, and after 64 layers were left."""
    engine = engine_of("llama3", attention)
    made: Any = StageEngine(engine, {}, {}, attention, None)  # type: ignore[arg-type]
    settings: Any = SimpleNamespace(trainer=TrainerConfig(compile="on"), run_folder=str(tmp_path / "run"))
    begun = Graphs.made()
    told: list[str] = []
    with_compiled = with_compiled_layers(made, settings, True, told.append)
    for first in range(20, 60, 2):
        gradients(engine, [row([first, 90 - first])], attention)
    assert with_compiled.compiled is not None and not with_compiled.compiled.why_not, told
    assert Graphs.made() - begun <= (8 if dynamic else 2)
    with_compiled.compiled.close()
