"""The GPU rows on a CPU with tiny models (they run, which says nothing about speed), and the archive for a GPU machine, tried in an interpreter that has torch, transformers
and what these require, and nothing else."""

import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import box_run, gpu
from benchmarks.gpu_box import MOST_MIB
from benchmarks.table import ONE_GPU
from tests.conftest import ROOT

ALONE = {"gpu_stream": "it needs Ray", "gpu_135m": "each of its kinds is a run of python -m trainer; the archive's test has it"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "gpu_mask" else pytest.mark.slow) for name in ONE_GPU if name not in ALONE]
)
def test_a_gpu_row_runs_on_a_cpu(name: str) -> None:
    """All kinds of steps; one row in every run, for thirty kinds take forty seconds."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--tiny", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stderr[done.stderr.index("\n{") : done.stderr.rindex("}") + 1])
    assert figures.pop("matmul_tflops") > 0
    for kind, of in figures.items():
        assert of["tokens_per_s"] > 0 and of["first_step_s"] > 0 and of["steps"] >= 1, kind


def kinds_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(gpu, "compare", lambda name, doc, kinds, *others: seen.extend(kinds))
    import_module(f"benchmarks.{name}").main([])
    return seen


def test_the_box_runs_every_kind_of_every_row_but_those_with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {(name, kind) for name in ONE_GPU if name != "gpu_stream" for kind in kinds_of(name, monkeypatch)}
    assert set(box_run.ORDER) == rows and len(box_run.ORDER) == len(rows)


def test_steps_of_a_gpu_row_differ() -> None:
    for work in (gpu.documents(4, 2, 128, 512), gpu.packed_mix(4, 2, 1024, 512)):
        shapes = [tuple(tuple(row["cu_seqlens"]) for row in work.rows(step)) for step in range(4)]
        assert len(set(shapes)) == 4


def test_a_box_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Done and failed kinds stay, what was cut begins anew, and no kind is begun when the time is up."""
    (tmp_path / "studyhall-box.tar.gz").write_bytes(b"")
    known = {"gpu_135m": {"ours": {"step_s": 1}}, "gpu_1b": {"ours": {"cut": 300}, "hf": {"failed": "no memory"}}}
    out = tmp_path / "box-results.json"
    out.write_text(json.dumps({"rows": known}))
    ran: list[tuple[str, str]] = []
    monkeypatch.setattr(box_run, "unpacked", lambda archive: tmp_path)
    monkeypatch.setattr(box_run, "installed", lambda home: tmp_path)
    monkeypatch.setattr(box_run, "machine", lambda home: {"device": "a GPU"})
    monkeypatch.setattr(box_run, "run", lambda row, kind, *others: ran.append((row, kind)) or {"step_s": 2})

    def start(limit_s: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["box_run.py", str(tmp_path / "studyhall-box.tar.gz"), "--limit-s", limit_s, "--rows", "gpu_135m:ours", "gpu_1b"]
        )
        box_run.main()
        return capsys.readouterr().out

    assert "2 of 9 kinds done" in start("10") and ran == []
    assert "9 of 9 kinds done" in start("1000")
    assert ran[0] == ("gpu_1b", "ours") and ("gpu_1b", "hf") not in ran and ("gpu_135m", "ours") not in ran and len(ran) == 7
    assert json.loads(out.read_text())["rows"]["gpu_1b"]["ours"] == {"step_s": 2}


def link_only(folder: Path, *roots: str) -> None:
    """Links these distributions and all that they require into a folder of packages."""
    todo, seen = list(roots), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if name in seen:
            continue
        seen.add(name)
        for part in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / part).exists():
                (folder / part).symlink_to(Path(str(found.locate_file(part))))
        wanted = [Requirement(text) for text in found.requires or ()]
        todo += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_bare_machine_runs_the_archive(tmp_path: Path) -> None:
    """Made here (needs a package index), run there on a CPU with tiny models: first with so little time that something is left, then to the end."""
    made = subprocess.run([sys.executable, "-m", "benchmarks.gpu_box", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    archive = tmp_path / "studyhall-box.tar.gz"
    assert archive.stat().st_size < MOST_MIB * 2**20
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)  # type: ignore[attr-defined]
    [packages] = (tmp_path / "bare/lib").glob("python*/site-packages")
    link_only(packages, "torch", "transformers")
    python = str(tmp_path / "bare/bin/python")
    for absent in ("ray", "vllm", "deepspeed"):
        assert subprocess.run([python, "-c", f"import {absent}"], cwd=tmp_path, capture_output=True).returncode
    for limit_s in ("60", "1500"):
        command = [python, "box_run.py", archive.name, "--tiny", "--steps", "1", "--limit-s", limit_s]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "box-results-tiny.json").read_text())["rows"]
    broken = {f"{row}:{kind}": figures for row, kinds in found.items() for kind, figures in kinds.items() if "step_s" not in figures}
    assert not broken, broken
