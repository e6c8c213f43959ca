"""A whole small run with secrets in its environment: none of them in anything it writes; and what listens while vLLM answers."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

CANARY = "c4nary5ecret"
SECRETS = {
    name: f"{name.lower()}-{CANARY}-0123456789"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
}
EXPERIMENT = """\
name: canary
runs: {runs}
data: {{bios: {{replay_people: 0, train_people: 4, test_people: 2}}}}
model: {{tiny: {{hidden_size: 64, layers: 1}}}}
dials: {{batch_items: 12, epochs_documents: 1, epochs_instruction: 1, epochs_pit: 1, sample_questions: 4}}
arms:
  mix: {{preset: mix}}
trainer: {{row_tokens: 256, num_workers: 1}}
exam: {{resamples: 100, answer_tokens: 4, modes: [closed], base_modes: [closed], documents: 0}}
"""


@dataclass
class Watched:
    """What a command said, and which of its processes listened where."""

    code: int
    said: str
    listening: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """(address, process, port) → what answered an HTTP request there."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sc"))  # short: Ray's socket names have 107 bytes
    (folder / "x.yaml").write_text(EXPERIMENT.format(runs=folder / "runs"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(folder: Path) -> Watched:
    """Training and exam."""
    watched = watch(folder, "trainer")
    assert watched.code == 0, watched.said
    return watched


def watch(folder: Path, room: str, *arguments: str, **more: str) -> Watched:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | SECRETS | more
    environment |= {"RAY_TMPDIR": str(folder / "ray"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    (folder / "ray").mkdir(exist_ok=True)
    command = [sys.executable, "-m", room, str(folder / "x.yaml"), *arguments]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        watched = Watched(-1, "")
        done = threading.Event()
        thread = threading.Thread(target=_listen, args=(process.pid, watched, done))
        thread.start()
        try:
            watched.code = process.wait(280)
        finally:
            process.kill()
            done.set()
            thread.join()
        said.seek(0)
        watched.said = said.read()
    return watched


def _listen(pid: int, watched: Watched, done: threading.Event) -> None:
    """Notes the listening sockets of a process and all its children, until done; the examiner's are asked over HTTP once."""
    while not done.wait(0.3):
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in family:
            try:
                name = " ".join(process.cmdline())[:60]
                sockets = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            except psutil.Error:
                continue
            for address in sockets:
                key = (address.ip, name, address.port)
                if key not in watched.listening:
                    watched.listening[key] = _http(address.port) if name.startswith("ray::Examiner") else "-"


def _http(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/v1/models", timeout=2) as reply:
            return str(reply.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, ValueError) as error:
        return type(error).__name__
    except Exception as error:  # http.client's: something that speaks no HTTP
        return type(error).__name__


def files_with(folder: Path, secret: bytes) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "auth_token"]
    assert len(found) > 30
    return [str(path.relative_to(folder)) for path in found if secret in path.read_bytes()]


@pytest.mark.timeout(600)
def test_no_secret_in_anything_that_was_written(folder: Path, run: Watched) -> None:
    """Ray's session logs, our logs, manifests, reports, token stores, what the terminal showed."""
    assert any("session_" in str(path) for path in (folder / "ray").rglob("raylet.out"))
    assert files_with(folder, CANARY.encode()) == [] and CANARY not in run.said
    token = (folder / ".ray" / "auth_token").read_text()
    assert len(token) == 64 and files_with(folder, token.encode()) == []
    (folder / "twin.log").write_text(f"token={SECRETS['HF_TOKEN']}")
    try:
        assert files_with(folder, CANARY.encode()) == ["twin.log"]  # what is there is found
    finally:
        (folder / "twin.log").unlink()


def test_no_port_of_vllm(run: Watched) -> None:
    """The engine is used in process. What listens besides are Ray's own ports, and nothing there serves vLLM's HTTP interface."""
    listening = run.listening
    assert any(name.startswith("ray::Examiner") for _, name, _ in listening), sorted(listening)
    assert not [key for key, answer in listening.items() if answer.isdigit() and int(answer) < 400], listening
    assert not [name for _, name, _ in listening if "api_server" in name or "EngineCore" in name or "VLLM" in name]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_secret_in_what_a_failure_leaves(folder: Path) -> None:
    """Tracebacks and stacks too."""
    failed = watch(folder, "trainer", "--no-exam", "seed=1", "trainer.max_failures=0", STUDYHALL_FAIL="step.forward=raise@2")
    assert failed.code == 1 and "made to fail" in failed.said, failed.said
    assert files_with(folder, CANARY.encode()) == [] and CANARY not in failed.said
