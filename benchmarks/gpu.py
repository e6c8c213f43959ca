"""What the GPU rows share: models, workloads, one optimiser step of ours and of the peers, MFU, memory, and the rate of a matrix product.

Every kind of step runs in a process of its own (`--kind`), so that each has the whole memory; the parent gathers. Nothing but torch, transformers and
DeepSpeed is needed. Without a GPU the result says "not measured"; `--tiny` runs everything on a CPU with a model of a few thousand
parameters, to see that it works, and writes no result.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu_steps import SHAPES, TINY, Make, Setting, hugging_face, ours, plain_torch
from benchmarks.mix import mixed_lengths
from benchmarks.result_file import write_result_file
from benchmarks.tiny import made_store, plan_of
from console import say
from data.rows import Row, step_rows

ROOT = Path(__file__).resolve().parent.parent


def documents(num_rows: int, row_tokens: int, vocabulary: int) -> list[Row]:
    """Rows of one item each."""
    store = made_store(np.full(num_rows, row_tokens), False, vocabulary)
    return step_rows(plan_of(num_rows, num_rows), store, 0, 0, 1, row_tokens, "token")


def packed_mix(num_rows: int, row_tokens: int, vocabulary: int) -> list[Row]:
    """About so many rows of the mix, packed."""
    lengths = mixed_lengths(100 * num_rows)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_rows * row_tokens))]
    store = made_store(lengths.clip(max=row_tokens), True, vocabulary)
    return step_rows(plan_of(len(lengths), len(lengths)), store, 0, 0, 1, row_tokens, "token")


def measure(setting: Setting, make: Make, rows: list[Row], steps: int) -> dict[str, Any]:
    """Median seconds of a step after two that warm up; tokens/s, MFU counted both ways, peak memory."""
    import torch

    from trainer.flops import peak_flops, row_flops

    step = make(setting)
    seconds = []
    for _ in range(steps + 2):
        started = time.perf_counter()
        known = step(rows)
        if not setting.tiny:
            torch.cuda.synchronize()
        seconds.append(known if known is not None else time.perf_counter() - started)
    step_s = median(seconds[2:])
    tokens = sum(len(row["input_ids"]) for row in rows)
    config = setting.shape.config()
    peak = None if setting.tiny else peak_flops(torch.cuda.get_device_name())
    flops = {causal: sum(row_flops(config, row["cu_seqlens"], causal=causal) for row in rows) for causal in (False, True)}
    return {
        "step_s": round(step_s, 4),
        "tokens_per_s": round(tokens / step_s),
        "tflops": round(flops[False] / step_s / 1e12, 2),
        "mfu": round(flops[False] / step_s / peak, 4) if peak else None,
        "mfu_causal": round(flops[True] / step_s / peak, 4) if peak else None,
        "peak_gib": None if setting.tiny else round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def matmul_tflops(tiny: bool) -> float:
    """Rate of one bf16 matrix product of 8,192³, in this very run: what the chip gives here and now."""
    import torch

    size, device = (256, "cpu") if tiny else (8192, "cuda")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        if not tiny:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(2 * size**3 / median(seconds[5:]) / 1e12, 2)


def arguments_of(name: str, doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters on a CPU; writes no result")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps that are timed")
    parser.add_argument("--kind", help="only this kind of step, in this process")
    parser.add_argument("--out", help="with --kind: file for its figures")
    return parser.parse_args(argv)


def compare(
    name: str,
    doc: str | None,
    kinds: dict[str, Callable[[bool, int], dict[str, Any]]],
    goal: dict[str, Any],
    judge: Callable[[dict[str, Any]], tuple[dict[str, Any], bool]],
    argv: list[str] | None,
) -> None:
    """The command of a GPU row. `kinds`: name → function (tiny, steps) → figures; `judge`: figures of all → (headline figures, goal met)."""
    arguments = arguments_of(name, doc, argv)
    if arguments.kind:
        figures = kinds[arguments.kind](arguments.tiny, arguments.steps)
        Path(arguments.out).write_text(json.dumps(figures))
        return
    if not arguments.tiny and not _has_gpu():
        write_result_file(name, {}, goal, None, status="not measured: no GPU here")
        return
    figures = {}
    for kind, function in kinds.items():
        say(f"{name}: {kind}")
        figures[kind] = function(True, 1) if arguments.tiny else _in_own_process(name, kind, arguments.steps)
    figures["matmul_tflops"] = matmul_tflops(arguments.tiny)
    if arguments.tiny:
        say(json.dumps(figures, indent=1))
        return
    import torch

    headline, holds = judge(figures)
    write_result_file(name, {**headline, **figures, "device": torch.cuda.get_device_name()}, goal, holds)


def _in_own_process(name: str, kind: str, steps: int) -> dict[str, Any]:
    """The figures of one kind; a peer that does not fit or is not installed is a result too."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--kind", kind, "--out", str(out), "--steps", str(steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def over(figures: dict[str, Any], kind: str, other: str, what: str = "tokens_per_s") -> float | None:
    """How many times as fast; None where one of them failed."""
    a, b = figures[kind].get(what), figures[other].get(what)
    return round(a / b, 3) if a and b else None


def compare_full_rows(name: str, doc: str | None, shape: str, argv: list[str] | None) -> None:
    """gpu_1b and gpu_3b: rows of one item of 4,096 tokens, mixed precision."""

    def kind(make: Make) -> Callable[[bool, int], dict[str, Any]]:
        def run(tiny: bool, steps: int) -> dict[str, Any]:
            of = TINY if tiny else SHAPES[shape]
            rows = documents(2, 64, of.vocabulary) if tiny else documents(4, 4096, of.vocabulary)
            return measure(Setting(of, tiny), make, rows, steps)

        return run

    def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        mfu, times = figures["ours"].get("mfu"), over(figures, "ours", "hf")
        return {"mfu": mfu, "over_hf": times}, bool(mfu and times and mfu >= 0.45 and times >= 1.3)

    kinds = {
        "ours": kind(ours),
        "ours_compiled": kind(lambda setting: ours(setting, compiled=True)),  # what of these is faster is kept
        "ours_liger": kind(lambda setting: ours(setting, liger=True)),
        "torch": kind(plain_torch),
        "hf": kind(lambda setting: hugging_face(setting, 2 if setting.tiny else 4)),
    }
    compare(name, doc, kinds, {"mfu": ">= 0.45", "over_hf": ">= 1.3"}, judge, argv)
