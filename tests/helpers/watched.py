"""A command run with secrets in its environment and a Ray of its own, and every port that its processes listen on."""

import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.helpers.places import ROOT, without_ray_settings

CANARY = "c4nary5ecret"
SECRETS = {
    name: f"{name.lower()}-{CANARY}-0123456789"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
}


@dataclass
class Watched:
    """What a command said, and which of its processes listened where."""

    code: int
    stdout: str = ""
    stderr: str = ""
    listening: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """(address, process, port) → what answered an HTTP request there."""


def watch(folder: Path, experiment: Path, room: str, *arguments: str, **more: str) -> Watched:
    """python -m room experiment *arguments; `folder` is its HOME and holds Ray's files (short: socket names have 107 bytes)."""
    environment = without_ray_settings() | SECRETS | more
    environment |= {"RAY_TMPDIR": str(folder / "ray"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    environment["VLLM_CACHE_ROOT"] = str(Path.home() / ".cache/vllm")  # what it finds out about a model class takes it 15 s
    (folder / "ray").mkdir(exist_ok=True)
    command = [sys.executable, "-m", room, str(experiment), *arguments]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        watched = Watched(-1)
        done = threading.Event()
        thread = threading.Thread(target=_listen, args=(process.pid, watched, done))
        thread.start()
        try:
            watched.code = process.wait(280)
        finally:
            process.kill()
            done.set()
            thread.join()
        stdout.seek(0)
        stderr.seek(0)
        watched.stdout, watched.stderr = stdout.read(), stderr.read()
    return watched


def _listen(pid: int, watched: Watched, done: threading.Event) -> None:
    """Notes the listening sockets of a process and all its children, until done; the examiner's are asked over HTTP once."""
    while not done.wait(1.0):
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
