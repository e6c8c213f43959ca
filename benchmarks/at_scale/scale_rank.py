"""Ranks of many, one after the other, make a stage's engine from its parent, or leave a stage, each in a process without the others: run by benchmarks.scale_*.

    PYTHONPATH=BUILD python benchmarks/at_scale/scale_rank.py load FOLDER FIRST LAST RANKS ZERO

Of the build in PYTHONPATH, this one or an older. The process group is torch's fake one: collectives give back what they get, so what other ranks would say is
made up before (of their files' headers) or is no part of what is counted. Nothing of `benchmarks` is imported: it would be this build's.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path += [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent),
]  # by bare names: `benchmarks` is the one of PYTHONPATH
from either_build import of
from scale_count import Counted, status_bytes


def made(folder: Path, zero_stage: int) -> tuple[Any, Any]:
    """(settings, job): a second stage in bf16, one item a row, so that nothing is tried with rows."""
    from data.config import Mix, Stage
    from trainer.config import TrainerConfig

    Job, WorkerSettings = of("trainer.jobs.prepare").Job, of("trainer.jobs.worker_settings").WorkerSettings
    trainer = TrainerConfig(zero_stage=zero_stage, packing="one_item")  # type: ignore[arg-type]
    stage = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=8, rate=1e-4)
    job = Job("second", "first", "made", stage, 1, "", "", 64, 64, 1)
    return WorkerSettings(str(folder), str(folder / "model"), trainer, "bf16", 0, False), job


def timed(place: Any, name: str, counted: Counted) -> None:
    real = getattr(place, name)

    def within(*arguments: Any, **keywords: Any) -> Any:
        with counted.part():
            return real(*arguments, **keywords)

    setattr(place, name, within)


def load(folder: Path, rank: int, num_ranks: int, zero_stage: int) -> dict[str, Any]:
    import torch

    from trainer import worker

    set_up, parent_weights = of("trainer.step.set_up"), of("trainer.export.export").parent_weights
    StageStore, DeepSpeedEngine = of("trainer.store.stages").StageStore, of("trainer.step.engine").DeepSpeedEngine
    settings, job = made(folder, zero_stage)
    store = StageStore(folder)
    others = others_say(folder, num_ranks, rank, store.manifest("first"))
    real_gather = torch.distributed.all_gather_object

    def gather(told: list[Any], mine: Any, *arguments: Any, **keywords: Any) -> None:
        told[:] = others(mine)

    torch.distributed.all_gather_object = gather
    set_up.decide = lambda *arguments: None  # tries the model with rows: no part of loading
    counted = Counted(folder / "stages")
    timed(set_up, "load_into", counted)
    timed(DeepSpeedEngine, "set_fp32", counted)
    with counted.counting():
        with counted.part():
            check = getattr(worker, "_refuse_damage", None)
            parent = parent_weights(settings, "first", store, check) if check else parent_weights(settings, "first", store, together=True)
        held = status_bytes("VmRSS")
        engine = set_up.make_engine(settings, job, parent, torch.device("cpu"), None).engine
    torch.distributed.all_gather_object = real_gather
    share = {name: values.clone() for name, _, values in engine.fragments()}
    return {
        "bytes": counted.bytes,
        "openings": counted.openings,
        "seconds": counted.seconds,
        "peak": counted.peak,
        "held": held,
        "share": sum(4 * values.numel() for values in share.values()),
        "sum": float(sum(values.double().sum() for values in share.values())),
    }


def others_say(folder: Path, num_ranks: int, rank: int, manifest: Any) -> Callable[[Any], list[Any]]:
    """What the other ranks would answer: the older builds ask whether files are sound, this one also what is in them."""
    try:
        fragments = of("trainer.store.fragments")
    except ImportError:
        return lambda mine: [mine] * num_ranks
    stored = fragments._stored(manifest["shapes"])
    looked = [
        fragments._look_through(folder / "stages/first/weights", range(r, num_ranks, num_ranks), stored, {}, num_ranks)
        for r in range(num_ranks)
    ]
    return lambda mine: [mine if r == rank else (None, looked[r].pieces, True) for r in range(num_ranks)]


def leave(folder: Path, rank: int, num_ranks: int, _: int) -> dict[str, Any]:
    """From the fp32 weights of the stage, as a rank has them at its end, to its part of hf/."""
    import torch

    weights, fragment_file = of("trainer.store.weights"), of("trainer.store.fragment_file").fragment_file
    shapes = json.loads((folder / "stages/first/manifest.json").read_text())["shapes"]
    hf = folder / f"hf-{rank}"
    counted = Counted(folder)
    mine: list[tuple[str, int, Any]] = []
    if not hasattr(weights, "export"):
        from safetensors import safe_open

        with safe_open(fragment_file(folder / "stages/first/weights", rank), framework="pt") as file:
            offsets = json.loads(file.metadata()["offsets"])
            mine = [(name, offsets[name], file.get_tensor(name).clone()) for name in offsets]
    with counted.counting(), counted.part():
        if mine:
            _by_shares(mine, shapes, folder, hf, num_ranks)
        elif rank == 0:
            weights.export(weights.FragmentWeights(folder / "stages/first/weights", shapes, num_ranks), hf, torch.bfloat16)
    size = sum(path.stat().st_size for path in hf.glob("*")) if hf.is_dir() else 0
    index = sum(path.stat().st_size for path in hf.glob("*.index.json")) if hf.is_dir() else 0
    return {
        "written": size,
        "index": index,
        "read": counted.bytes,
        "openings": counted.openings,
        "seconds": counted.seconds,
        "peak": counted.peak,
    }


def _by_shares(mine: list[tuple[str, int, Any]], shapes: dict[str, list[int]], folder: Path, hf: Path, num_ranks: int) -> None:
    """The other ranks have the same cut of other values, and write what this one does not."""
    import torch

    export, model_shards, cut = of("trainer.export.export"), of("trainer.export.model_shards"), of("trainer.store.group").cut
    model_shards._LEAST_BYTES //= 1000  # the model is a thousandth of one that is worth sharing
    export._describe = lambda *_: None
    export.folder_buffers = lambda *_: ({}, {})
    cuts = {name: _product(shape) for name, shape in shapes.items()}

    def gather(told: list[Any], own: Any, *arguments: Any, **keywords: Any) -> None:
        if isinstance(own, list):
            spans = [(name, r, *cut(size, r, num_ranks)) for r in range(num_ranks) for name, size in cuts.items()]
            parts = [[(name, (r, low, high - low)) for name, by, low, high in spans if by == r and high > low] for r in range(num_ranks)]
            told[:] = parts
        else:
            count = int(next(iter(own)).rpartition("-")[2].partition(".")[0])
            told[:] = [dict.fromkeys(model_shards.shard_names(count), next(iter(own.values()))) | own] * num_ranks

    torch.distributed.all_gather_object = gather
    export.export_stage(mine, shapes, str(folder / "model"), hf, "bf16", "pit", torch.device("cpu"))


def _product(shape: list[int]) -> int:
    from math import prod

    return prod(shape)


def stages(folder: Path, rank: int, num_ranks: int, zero_stage: int) -> dict[str, Any]:
    """Two stages trained one after the other, by the worker's own loop: what the first one held and is there when the second is built."""
    import gc
    import weakref

    import numpy as np
    import torch

    from benchmarks.tiny import made_store, plan_of
    from data.config import Mix, Stage
    from trainer import worker
    from trainer.config import TinyModel, TrainerConfig

    Job, WorkerSettings = of("trainer.jobs.prepare").Job, of("trainer.jobs.worker_settings").WorkerSettings
    rank_rows, make_tiny_model = of("data.rows.flat_rows").rank_rows, of("trainer.network.model").make_tiny_model
    make_tiny_model(folder / "model", TinyModel(hidden_size=128), ["one two three four"] * 8, 0)
    (folder / "logs").mkdir(exist_ok=True)
    store, plan = made_store(np.full(8, 20), False, vocabulary=200), plan_of(8, 8)
    trainer = TrainerConfig(zero_stage=zero_stage, packing="one_item")  # type: ignore[arg-type]
    stage = Stage(mix=Mix(train_documents=1), epochs=1, batch_items=8, rate=1e-4)
    jobs = [Job(key, parent, "made", stage, 1, "", "", 64, 64, n) for n, (key, parent) in enumerate([("first", None), ("second", "first")])]
    settings = WorkerSettings(str(folder), str(folder / "model"), trainer, "fp32" if zero_stage == 0 else "bf16", 0, False)
    held: list[Any] = []
    found: list[int] = []
    real = worker.make_engine

    def make(*arguments: Any, **keywords: Any) -> Any:
        found.append(sum(reference() is not None for reference in held))
        before = {id(tensor) for tensor in _tensors(gc, torch)}
        made = real(*arguments, **keywords)
        held[:] = [weakref.ref(tensor) for tensor in _tensors(gc, torch) if id(tensor) not in before]
        return made

    worker.make_engine = make  # type: ignore[assignment]
    worker.train_jobs(settings, jobs, lambda job, r, n, first, one: rank_rows(plan, store, r, n, 64, "token", one_item=True), {})
    worker.make_engine = real
    left = [reference() for reference in held]
    return {"held": len(held), "alive": found[1], "alive_bytes_at_end": sum(t.numel() * t.element_size() for t in left if t is not None)}


def _tensors(gc: Any, torch: Any) -> list[Any]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def in_child(what: Callable[..., dict[str, Any]], folder: Path, rank: int, num_ranks: int, zero_stage: int) -> None:
    """A process for each rank, forked from one that has imported everything."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"rank {rank} failed")
        return
    code = 1
    try:
        group(rank, num_ranks)
        print("RESULT " + json.dumps({"rank": rank, **what(folder, rank, num_ranks, zero_stage)}), flush=True)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def group(rank: int, num_ranks: int) -> None:
    """torch's fake one; for one rank alone gloo."""
    import torch

    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(num_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if num_ranks == 1:
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)


def main() -> None:
    what, folder, first, last, num_ranks, zero_stage = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7])
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import trainer.worker  # noqa: F401

    torch.set_num_threads(1)
    for rank in range(first, last + 1):
        in_child({"load": load, "leave": leave, "stages": stages}[what], folder, rank, num_ranks, zero_stage)


if __name__ == "__main__":
    main()
