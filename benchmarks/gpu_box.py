"""The GPU rows for a machine with torch and transformers and no network: python -m benchmarks.gpu_box [--out FOLDER]

Makes FOLDER/studyhall-box.tar.gz (below 60 MiB: the checkout's committed Python files and wheels of what such a machine lacks) and puts box_run.py beside it. There:
python box_run.py studyhall-box.tar.gz --limit-s 360, again until it says that all is done; box-results.json then holds the figures.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from console import RunError, door, say

ROOT = Path(__file__).resolve().parent.parent
MOST_MIB = 60
PYTHONS = ("3.11", "3.12", "3.13")
# distribution → module that says whether the machine has it. Without their dependencies: all that is needed stands here.
PURE = {
    "pydantic": "pydantic", "typing-inspection": "typing_inspection", "annotated-types": "annotated_types", "hjson": "hjson", "einops": "einops",
    "py-cpuinfo": "cpuinfo", "accelerate": "accelerate", "peft": "peft", "rich": "rich", "markdown-it-py": "markdown_it", "mdurl": "mdurl", "pygments": "pygments",
    "tqdm": "tqdm", "ninja": "ninja", "psutil": "psutil", "liger-kernel": "liger_kernel", "torchao": "torchao",
}  # fmt: skip
"""Of any Python, or of its stable interface."""
COMPILED = {"pydantic-core": "pydantic", "msgpack": "msgpack"}
"""One wheel for each of PYTHONS; pydantic goes with the core of its own release, so both come or none."""
_OF_GPUS = ("liger-kernel", "torchao")
"""Locked for GPU machines alone."""
_ROOMS = ("benchmarks", "cluster", "data", "evaluation", "trainer", "tune")


def wheels(folder: Path) -> dict[str, str]:
    """Puts the wheels into the folder; → file name → module."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    fetch = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    _call([*fetch, *(f"{name}=={_version(name)}" for name in PURE)])
    for python in PYTHONS:
        own = ["--python-version", python, "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
        _call([*fetch, *own, *(f"{name}=={_version(name)}" for name in COMPILED)])
    # DeepSpeed comes as source; without its own kernels it is Python alone.
    _call([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), f"deepspeed=={_version('deepspeed')}"])
    modules = {_plain(name): module for name, module in {**PURE, **COMPILED, "deepspeed": "deepspeed"}.items()}
    return {path.name: modules[_plain(path.name.split("-")[0])] for path in sorted(folder.glob("*.whl"))}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _version(name: str) -> str:
    """As the lock of GPU machines says, or as it is here."""
    if name not in _OF_GPUS:
        return version(name)
    return (ROOT / "requirements/gpu.lock").read_text().split(f"\n{name}==")[1].split()[0]


def _call(command: list[str]) -> None:
    import os

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DS_BUILD_OPS": "0"})
    if done.returncode:
        raise RunError(f"{' '.join(command[3:])}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def sources() -> list[str]:
    """Committed Python files and experiments' tables, without tests."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in listed if path.endswith((".py", ".csv")) and ("/" not in path or path.split("/")[0] in _ROOMS)]


def write_archive(out: Path, wheel_folder: Path, modules: dict[str, str]) -> None:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    made = {"commit": commit.stdout.strip(), "made": time.strftime("%Y-%m-%d")}
    with tarfile.open(out, "w:gz", compresslevel=6) as archive:
        for path in sources():
            archive.add(ROOT / path, f"studyhall/{path}")
        for name in modules:
            archive.add(wheel_folder / name, f"wheels/{name}")
        for name, content in (("wheels/modules.json", modules), ("made.json", made)):
            text = json.dumps(content, indent=1).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_box", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="folder for the archive and its script")
    parser.add_argument("--no-wheels", action="store_true", help="the checkout alone: for a machine that has everything")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    archive = arguments.out / "studyhall-box.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        write_archive(archive, Path(folder), {} if arguments.no_wheels else wheels(Path(folder)))
    (arguments.out / "box_run.py").write_text((ROOT / "benchmarks" / "box_run.py").read_text())
    size = archive.stat().st_size / 2**20
    if size >= MOST_MIB:
        raise RunError(f"{archive}: {size:.1f} MiB, more than {MOST_MIB}")
    say(f"{archive}: {size:.1f} MiB; on the GPU machine: python box_run.py {archive.name} --limit-s 360")


if __name__ == "__main__":
    door(main)
