"""The fuzzer of `make fuzz`, a few inputs of each kind; STUDYHALL_FUZZ=n for n of them. Its last long run is benchmarks/results/fuzz.json."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fuzz_readers
from benchmarks.fuzz_readers import RESULT, TARGETS, run
from tests.conftest import ROOT
from tests.data.sources.faulty_sources import GOOD, READERS

INPUTS = int(os.environ.get("STUDYHALL_FUZZ", "100"))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_refusals(target: str, tmp_path: Path) -> None:
    result = run(target, range(INPUTS), 120, tmp_path / "at")
    assert result["crashes"] == 0, result["first"]
    assert result["read"] + result["refused"] == INPUTS and result["read"] and result["refused"]  # it tries both sides


def test_the_fuzzer_sees_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("text")

    monkeypatch.setattr(fuzz_readers, "load_corpus", broken)
    result = run("jsonl", range(3), 60, tmp_path / "at")
    assert result["crashes"] == 3 and result["first"][0].startswith("jsonl:0: KeyError at test_fuzz.py")


def test_the_fuzzer_sees_a_lost_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fuzz_readers.load_corpus

    def forgetful(*arguments: object) -> object:
        corpus = real(*arguments)  # type: ignore[arg-type]
        corpus.intakes[0].rows_read -= 1
        corpus.intakes[0].rows_used -= 1
        return corpus

    monkeypatch.setattr(fuzz_readers, "load_corpus", forgetful)
    assert "a line is lost" in run("jsonl", range(20), 60, tmp_path / "at")["first"][0]


def test_wild_offsets_of_arrow_data(tmp_path: Path) -> None:
    """pyarrow would follow them out of its memory and the process would die: in a process of its own."""
    READERS["huggingface"].write(tmp_path, GOOD)
    path = tmp_path / "x" / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    offsets = struct.pack("<4i", 0, 3, 6, 11)  # of "one", "two", "three"
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, struct.pack("<4i", 0, 3, 0x7FFFFFF0, 11)))
    (tmp_path / "x.yaml").write_text(
        json.dumps(
            {
                "name": "t",
                "model": {"tiny": {}},
                "arms": {"mix": {"preset": "mix"}},
                "data": {
                    "root": str(tmp_path),
                    "sources": [{"path": "x", "split": "train", "holds": "documents", "format": "huggingface"}],
                },
            }
        )
    )
    command = [sys.executable, "-m", "data", "check", str(tmp_path / "x.yaml")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 2, done
    assert "x:row 2: cannot be read (corrupt or truncated)" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_long_runs_are_recorded() -> None:
    report = json.loads(RESULT.read_text())
    assert report and set(report) <= set(TARGETS)
    for target, result in report.items():
        assert result["inputs"] >= 10_000 and result["crashes"] == 0, target
