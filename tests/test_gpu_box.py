"""The GPU rows on a CPU with tiny models (they run, which says nothing about speed), and the archive for a GPU machine, tried in an interpreter that has torch, transformers
and what these require, and nothing else."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from benchmarks import box_run, gpu, gpu_135m
from benchmarks.gpu_box import MOST_MIB
from benchmarks.table import ONE_GPU
from data.config import Stage
from data.curriculum.catalogue import declared_catalogue
from data.curriculum.plan import compile_plan
from data.rows.flat_rows import step_rows
from data.rows.static_rows import static_shapes
from data.rows.token_store import TokenStore
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
    """Done and failed kinds stay, what was cut begins anew after the others, and no kind is begun when the time is up."""
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
    assert ran[-1] == ("gpu_1b", "ours") and ("gpu_1b", "hf") not in ran and ("gpu_135m", "ours") not in ran and len(ran) == 7
    assert json.loads(out.read_text())["rows"]["gpu_1b"]["ours"] == {"step_s": 2}


KIND = """\
import json, os, pathlib, subprocess, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
done = lambda: pathlib.Path(arguments["--out"]).write_text(json.dumps({"step_s": 3}))
%s
"""


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("done(); os.abort()", {"step_s": 3, "ended": "exit code -6"}),
        ("done(); time.sleep(60)", {"step_s": 3, "ended": "exit code -9"}),
        ("time.sleep(60)", {"cut": 3}),
        (
            "sys.stderr.write('Traceback\\ntorch.OutOfMemoryError: CUDA out of memory\\ndestroy_process_group() was not called\\n'); sys.exit(1)",
            {"failed": "torch.OutOfMemoryError: CUDA out of memory"},
        ),
    ],
)
def test_what_a_kind_has_measured_counts_however_it_ends(tmp_path: Path, does: str, found: dict[str, object]) -> None:
    made_up_row(tmp_path, does)
    arguments = argparse.Namespace(steps=1, tiny=False)
    told = box_run.run("row", "ours", tmp_path, tmp_path, arguments, 3.0)
    assert told.pop("wall_s") < 20 and told.pop("compiled_before") is False
    assert told == found


def made_up_row(home: Path, does: str) -> None:
    (home / "studyhall/benchmarks").mkdir(parents=True)
    (home / "studyhall/benchmarks/__init__.py").write_text("")
    (home / "studyhall/benchmarks/row.py").write_text(KIND % does)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_no_kind_outlives_the_box(tmp_path: Path, signum: signal.Signals) -> None:
    """It would hold the GPU's memory and slow those of the next call."""
    made_up_row(tmp_path, f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(120)")
    code = (
        "import argparse, signal, sys; from pathlib import Path; from benchmarks import box_run; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); home = Path(sys.argv[1]); "
        "box_run.run('row', 'ours', home, home, argparse.Namespace(steps=1, tiny=False), 100.0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as box:
        deadline = time.monotonic() + 30
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        box.send_signal(signum)
    kind = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    while kind.exists() and "State:\tZ" not in kind.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not kind.exists() or "State:\tZ" in kind.read_text()


def test_every_length_of_the_small_models_rows_is_met_before_it_is_timed() -> None:
    """Each is compiled when it comes first."""
    lengths = gpu_135m.film_lengths(gpu_135m.DOCUMENTS) + 1
    epochs = -(-(20 + gpu_135m.WARM_UP) * gpu_135m.STEP_ITEMS // gpu_135m.DOCUMENTS)
    stage = Stage.model_validate({"mix": {"train_documents": 1}, "batch_items": gpu_135m.STEP_ITEMS, "rate": 5e-4, "epochs": epochs})
    plan = compile_plan(stage, declared_catalogue({"train_documents": gpu_135m.DOCUMENTS}), 0)
    shapes = static_shapes(plan, lengths, 1, 16_384, 16_384)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    store = TokenStore(np.full(offsets[-1], 3, dtype=np.uint32), offsets, np.ones(len(lengths), dtype=np.int32), "")
    met = [
        {len(shapes.pad(row)["input_ids"]) for row in step_rows(plan, store, step, 0, 1, 16_384, "example")}
        for step in range(plan.num_steps)
    ]
    assert set().union(*met[: gpu_135m.WARM_UP]) == set().union(*met) and set().union(*met[: gpu.WARM_UP]) != set().union(*met)


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
