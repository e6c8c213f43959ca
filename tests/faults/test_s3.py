"""The mirror on an S3-compatible service: moto's server, in an environment of its own (`make s3`)."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as fs
import pytest

from tests.conftest import ROOT
from trainer.store.mirror import Mirror
from trainer.store.stages import StageStore

SERVER = ROOT / ".venv-s3" / "bin" / "moto_server"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SERVER.exists(), reason="make s3 installs the service and runs this")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket, as trainer.checkpoint.mirror takes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    server = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ.copy()
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/mirror", method="PUT"), timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "no service"
                time.sleep(0.2)
        yield f"s3://mirror/runs?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    finally:
        server.terminate()
        server.wait(timeout=20)


def stage(run: Path, key: str) -> Path:
    """A committed stage of two files, one larger than a part of an upload."""
    folder = run / "stages" / key
    (folder / "hf").mkdir(parents=True)
    files = {"weights/rank-00000.safetensors": os.urandom(20 * 2**20), "hf/config.json": b"{}"}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    listed = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    StageStore(run).commit(key, {"step": 1, "files": listed})
    return folder


def test_stages_go_and_come_back(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    folder = stage(run, "a1")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    Mirror(bucket, run).push()
    Mirror(bucket, run).push()  # nothing new
    shutil.rmtree(run / "stages")
    assert Mirror(bucket, run).fetch(["a1", "b2"]) == ["stages/a1"]
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: content for name, content in after.items() if name.name != "manifest.json"} == {
        name: content for name, content in before.items() if name.name != "manifest.json"
    }
    assert json.loads(after[Path("manifest.json")]) == json.loads(before[Path("manifest.json")])

    remote, root = fs.FileSystem.from_uri(bucket)
    shutil.rmtree(run / "stages")
    with remote.open_output_stream(f"{root}/run/stages/a1/weights/rank-00000.safetensors") as file:
        file.write(b"other")  # a copy that somebody changed
    assert Mirror(bucket, run).fetch(["a1"]) == [] and StageStore(run).manifest("a1") is None


def test_a_copy_that_broke_off_is_no_stage(bucket: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage(run, "a1")
    Mirror(bucket, run).push()
    remote, root = fs.FileSystem.from_uri(bucket)
    remote.delete_file(f"{root}/run/stages/a1/manifest.json")
    shutil.rmtree(run / "stages")
    assert Mirror(bucket, run).fetch(["a1"]) == []


def test_names_that_lead_out_are_not_written(bucket: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage(run, "a1")
    Mirror(bucket, run).push()
    remote, root = fs.FileSystem.from_uri(bucket)
    with remote.open_output_stream(f"{root}/run/stages/a1/../../../planted") as file:
        file.write(b"x")
    shutil.rmtree(run / "stages")
    Mirror(bucket, run).fetch(["a1"])
    assert not [path for path in tmp_path.rglob("planted")]


def test_no_service_is_said_and_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    stage(run, "a1")
    Mirror("s3://mirror/runs?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1", run).push()
    assert "mirror: stages/a1 could not be copied" in capsys.readouterr().err
