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
from benchmarks.gpu_steps import SHAPES, TINY, Make, Setting, Workload, hugging_face, ours, plain_torch

from benchmarks.mix import DOCUMENT_TOKENS, mixed_lengths
from benchmarks.result_file import write_result_file
from benchmarks.tiny import made_store, plan_of
from console import say

STEPS, WARM_UP = 20, 3
"""Steps that are timed, and steps before them: kernels are chosen, layers compiled, a ladder of row lengths met."""
ROOT = Path(__file__).resolve().parent.parent.parent


def documents(num_steps: int, num_rows: int, row_tokens: int, vocabulary: int) -> Workload:
    """The mix's documents (950 tokens where rows have 4,096), loss on all tokens; about so many rows a step."""
    rng = np.random.default_rng(0)
    lengths = (
        rng.lognormal(np.log(DOCUMENT_TOKENS * row_tokens / 4096), 0.35, 5 * num_rows * num_steps).astype(np.int64).clip(8, row_tokens)
    )
    return _steps(lengths, num_steps, num_rows * row_tokens, row_tokens, vocabulary)


def packed_mix(num_steps: int, num_rows: int, row_tokens: int, vocabulary: int) -> Workload:
    """The mix of questions and documents (benchmarks/mix.py); about so many rows a step."""
    lengths = mixed_lengths(max(8, num_rows * row_tokens // 200) * num_steps).clip(max=row_tokens)
    return _steps(lengths, num_steps, num_rows * row_tokens, row_tokens, vocabulary)


def _steps(lengths: Any, num_steps: int, step_tokens: int, row_tokens: int, vocabulary: int) -> Workload:
    """Steps of as many items as have `step_tokens` on average, a little less, so that the last row of a step is seldom nearly empty."""
    batch = max(1, int(0.97 * step_tokens / lengths.mean()))
    lengths = np.resize(lengths, batch * num_steps)
    return Workload(made_store(lengths, True, vocabulary), plan_of(len(lengths), batch), row_tokens)


def measure(setting: Setting, make: Make, workload: Workload) -> dict[str, Any]:
    """Seconds of the first step, then median and 90th percentile of the others after two more; tokens/s and MFU counted both ways over those, peak memory."""
    import torch

    from trainer.network.flops import peak_flops, row_flops

    step = make(setting, workload)
    seconds, tokens = [], []
    flops: dict[bool, list[float]] = {False: [], True: []}
    config = setting.shape.config()
    for number in range(workload.plan.num_steps):
        rows = workload.rows(number)
        started = time.perf_counter()
        known = step(rows)
        if not setting.tiny:
            torch.cuda.synchronize()
        seconds.append(known if known is not None else time.perf_counter() - started)
        tokens.append(sum(int(row["cu_seqlens"][-1]) for row in rows))
        for causal, of in flops.items():
            of.append(sum(row_flops(config, row["cu_seqlens"], causal=causal) for row in rows))
    peak = None if setting.tiny else peak_flops(torch.cuda.get_device_name())
    warm = slice(min(WARM_UP, len(seconds) - 1), None)
    spent = sum(seconds[warm])
    return {
        "first_step_s": round(seconds[0], 2),
        "step_s": round(median(seconds[warm]), 4),
        "step_s_p90": round(float(np.quantile(seconds[warm], 0.9)), 4),
        "steps": len(seconds[warm]),
        "tokens_per_s": round(sum(tokens[warm]) / spent),
        "tflops": round(sum(flops[False][warm]) / spent / 1e12, 2),
        "mfu": round(sum(flops[False][warm]) / spent / peak, 4) if peak else None,
        "mfu_causal": round(sum(flops[True][warm]) / spent / peak, 4) if peak else None,
        "peak_gib": None if setting.tiny else round(torch.cuda.max_memory_allocated() / 2**30, 2),
        **getattr(step, "about", {}),
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
    return float(f"{2 * size**3 / median(seconds[5:]) / 1e12:.3g}")


def arguments_of(name: str, doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters on a CPU; writes no result")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps that are timed")
    parser.add_argument("--kind", help="only this kind of step, in this process")
    parser.add_argument("--kinds", action="store_true", help="print the kinds of steps, as JSON")
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
    """The command of a GPU row. `kinds`: name → function (tiny, steps to time) → figures; `judge`: figures of all → (headline figures, goal met)."""
    arguments = arguments_of(name, doc, argv)
    if arguments.kinds:
        print(json.dumps(list(kinds)))
        return
    if arguments.kind:
        figures = kinds[arguments.kind](arguments.tiny, arguments.steps)
        Path(arguments.out).write_text(json.dumps(figures))  # first: what follows may not fit beside what has been measured
        rate = {"matmul_tflops": matmul_tflops(arguments.tiny)}
        Path(arguments.out).write_text(json.dumps({**figures, **rate}))
        return
    if not arguments.tiny and not _has_gpu():
        write_result_file(name, {}, goal, None, status="not measured: no GPU here")
        return
    figures = {}
    for kind, function in kinds.items():
        say(f"{name}: {kind}")
        figures[kind] = function(True, 1) if arguments.tiny else _in_own_process(name, kind, arguments.steps)
        if not arguments.tiny:
            write_result_file(name, figures, goal, None, status=f"under way: {len(figures)} of {len(kinds)} kinds")
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


def compare_documents(name: str, doc: str | None, shape: str, least_mfu: float, argv: list[str] | None) -> None:
    """gpu_1b and gpu_3b: documents in rows of 4,096 tokens, mixed precision."""

    def kind(make: Make, workload: Callable[..., Workload] = documents) -> Callable[[bool, int], dict[str, Any]]:
        def run(tiny: bool, steps: int) -> dict[str, Any]:
            of = TINY if tiny else SHAPES[shape]
            work = workload(steps + 1, 2, 64, of.vocabulary) if tiny else workload(steps + WARM_UP, 8, 4096, of.vocabulary)
            return measure(Setting(of, tiny), make, work)

        return run

    def judge(figures: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        mfu, times = figures["ours"].get("mfu"), over(figures, "ours", "hf")
        return {"mfu": mfu, "over_hf": times}, bool(mfu and times and mfu >= least_mfu and times >= 1.5)

    kinds = {
        "ours": kind(ours),
        "hf": kind(hugging_face),
        "ours_eager": kind(lambda setting, workload: ours(setting, workload, compile="off")),
        "torch": kind(plain_torch),
        "ours_deepspeed": kind(lambda setting, workload: ours(setting, workload, deepspeed=True)),
        "ours_mix": kind(ours, packed_mix),
        "ours_liger": kind(lambda setting, workload: ours(setting, workload, compile="off", liger=True)),
        "ours_fp8": kind(lambda setting, workload: ours(setting, workload, fp8="off" if setting.tiny else "tensorwise")),
    }
    compare(name, doc, kinds, {"mfu": f">= {least_mfu}", "over_hf": ">= 1.5"}, judge, argv)
