"""Runs the GPU rows on a machine that has Python with torch and transformers, and no network: python box_run.py studyhall-box.tar.gz [--limit-s 360]

Standard library alone; benchmarks/gpu_box.py makes the archive and puts this file beside it. Rows run in the order of what they are worth, each kind of step in a process of its
own, and figures are written as they come, to box-results.json beside the archive or in --out. The same command again runs what is missing, what was cut off last; what failed
stays failed (--again tries it). Ended from outside, it takes the kind that runs with it, and what torch has compiled is found warm by the next try.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ORDER = (
    ("gpu_135m", "ours"), ("gpu_1b", "ours"), ("gpu_1b", "hf"), ("gpu_135m", "hf_padded"), ("gpu_8b", "ours"), ("gpu_mask", "masked"), ("gpu_mask", "causal"),
    ("gpu_135m", "ours_auto_rows"), ("gpu_135m", "ours_graphs"), ("gpu_135m", "ours_eager"), ("gpu_1b", "torch"), ("gpu_1b", "ours_eager"), ("gpu_1b", "ours_mix"), ("gpu_3b", "ours"), ("gpu_3b", "hf"),
    ("gpu_pack", "packed"), ("gpu_pack", "padded"), ("gpu_1b", "ours_fp8"), ("gpu_8b", "ours_fp8"), ("gpu_8b", "hf"), ("gpu_1b", "ours_liger"), ("gpu_1b", "ours_deepspeed"), ("gpu_3b", "ours_deepspeed"),
    ("gpu_3b", "ours_eager"), ("gpu_3b", "torch"), ("gpu_3b", "ours_mix"), ("gpu_3b", "ours_fp8"), ("gpu_3b", "ours_liger"), ("gpu_mask", "masked_padded_sdpa"),
    ("gpu_mask", "masked_varlen"), ("gpu_offload", "offload_64k"), ("gpu_offload", "gpu_64k"), ("gpu_offload", "offload_256k"), ("gpu_offload", "gpu_256k"),
)  # fmt: skip
"""(row, kind of step): what says most about the project first."""
PEERS = ("torchao", "liger_kernel")
_LEAST_S = 15.0
"""With less time left no kind is begun: imports alone take that."""


def main() -> int:
    arguments = _arguments()
    ends = time.monotonic() + arguments.limit_s
    home = unpacked(arguments.archive)
    packages = installed(home)
    out = (arguments.out or arguments.archive.resolve().parent) / ("box-results-tiny.json" if arguments.tiny else "box-results.json")
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    results["machine"] = machine(home)
    wanted = [(row, kind) for row, kind in ORDER if not arguments.rows or row in arguments.rows or f"{row}:{kind}" in arguments.rows]
    cut_last = sorted(wanted, key=lambda one: "cut" in results["rows"].get(one[0], {}).get(one[1], {}))  # what hung once may hang again
    for row, kind in cut_last:
        known = results["rows"].setdefault(row, {}).get(kind, {})
        if known and not known.get("cut") and not (arguments.again and "failed" in known):
            continue
        left = ends - time.monotonic()
        if left < _LEAST_S:
            break
        print(f"{row}: {kind} ({left:.0f} s left)", flush=True)
        results["rows"][row][kind] = run(row, kind, home, packages, arguments, min(left, arguments.kind_s))
        _write(out, results)
    done = [(row, kind) for row, kind in wanted if results["rows"].get(row, {}).get(kind, {"cut": True}).get("cut") is None]
    _write(out, results)
    print(f"{len(done)} of {len(wanted)} kinds done, in {out}" + ("" if len(done) == len(wanted) else "; the same command runs the rest"))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--limit-s", type=float, default=360.0, help="seconds after which nothing runs any more")
    parser.add_argument("--kind-s", type=float, default=180.0, help="seconds after which one kind of step is cut off")
    parser.add_argument("--out", type=Path, help="folder for box-results.json, where not all of this one comes back")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW[:KIND]", help="only these")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps that are timed")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand parameters on a CPU: does it run here at all")
    parser.add_argument("--again", action="store_true", help="what has failed too")
    return parser.parse_args()


def unpacked(archive: Path) -> Path:
    """The archive's folder, beside it, unpacked once for each content."""
    home = archive.resolve().parent / "studyhall-box"
    stamp = home / "unpacked-from"
    facts = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
    if not stamp.exists() or stamp.read_text() != facts:
        with tarfile.open(archive) as file:
            file.extractall(home, filter="data")
        stamp.write_text(facts)
    return home


def installed(home: Path) -> Path:
    """A folder with the wheels that this Python lacks, for PYTHONPATH; what it has is left as it is, whatever the version. What only some kinds of steps are measured with goes
    where benchmarks/peers.py looks, for other libraries change their ways where they find it.
    """
    target, wheels = home / f"packages-{sys.version_info.major}.{sys.version_info.minor}", home / "wheels"
    if target.exists():
        return target
    names: dict[str, str] = json.loads((wheels / "modules.json").read_text())
    missing = [wheel for wheel, module in names.items() if importlib.util.find_spec(module) is None and _fits(wheel)]
    draft = target.with_suffix(".part")
    draft.mkdir(exist_ok=True)
    for wheel in missing:
        with zipfile.ZipFile(wheels / wheel) as file:  # a wheel is one; pip itself may be missing
            file.extractall(home / "studyhall" / ".peers" if names[wheel] in PEERS else draft)
    if importlib.util.find_spec("pyarrow") is None:
        _stand_in_for_pyarrow(draft / "pyarrow")
    draft.rename(target)
    print(f"taken from the archive: {', '.join(missing) or 'nothing'}", flush=True)
    return target


def _stand_in_for_pyarrow(folder: Path) -> None:
    """Its wheel alone would fill the archive, and what is measured here reads JSONL: names to import, and nothing behind them."""
    folder.mkdir()
    nothing = 'def __getattr__(name):\n    if name.startswith("_"):\n        raise AttributeError(name)\n    return type(name, (Exception,), {})\n'
    for part in ("__init__", "parquet", "fs"):
        (folder / f"{part}.py").write_text(nothing)


def _fits(wheel: str) -> bool:
    """Whether a wheel is for this Python: any, this version, or the stable interface since an older one."""
    python, abi, _ = wheel.removesuffix(".whl").split("-")[-3:]
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return (
        python.startswith("py") or own in python.split(".") or (abi == "abi3" and int(python[3:].split(".")[0]) <= sys.version_info.minor)
    )


def machine(home: Path) -> dict[str, Any]:
    import torch

    about = json.loads((home / "made.json").read_text())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        **about,
        "device": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
    }


def run(row: str, kind: str, home: Path, packages: Path, arguments: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """The figures of one kind in a process of its own: {…}, {"failed": why} or {"cut": seconds}; figures that were written count, however the process ended."""
    figures = home / "figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{row}", "--kind", kind, "--out", str(figures), "--steps", str(arguments.steps)]
    path = os.pathsep.join([str(home / "studyhall"), str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = home / "compiled" / row
    own = {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_BUILD_OPS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
    }
    spent: dict[str, Any] = {"compiled_before": cache.exists()}
    started = time.monotonic()
    with (home / f"{row}-{kind}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *(["--tiny"] if arguments.tiny else [])],
            cwd=home / "studyhall", env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True, preexec_fn=_ends_with_this_process,
        )  # fmt: skip
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            spent["cut"] = round(limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the compiler's helpers are of its session
            process.wait()
    spent["wall_s"] = round(time.monotonic() - started, 1)
    if figures.exists():
        spent |= {"ended": f"exit code {process.returncode}"} if process.returncode else {}
        spent.pop("cut", None)
        return {**json.loads(figures.read_text()), **spent}
    return spent if "cut" in spent else {"failed": _reason(home / f"{row}-{kind}.log") or f"exit code {process.returncode}", **spent}


def _ends_with_this_process() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a kind that went on alone would hold the GPU


def _reason(log: Path) -> str:
    """The last line that names an error: libraries say goodbye after it."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|error: ", line)]
    return (named or lines or [""])[-1][-400:]


def _write(path: Path, content: Any) -> None:
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of `finally`
    sys.exit(main())
