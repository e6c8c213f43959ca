"""A real cluster on one machine: a head with job server and token, and nodes that can be added and lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.places import ROOT, without_ray_settings

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Machines:
    """Nodes as groups of processes, each started by `ray start --block`."""

    folder: Path
    gcs: str
    dashboard: str
    token: str
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, cpus: int, *options: str) -> None:
        """The environment has the dependencies only: nothing of ours is on a node's path. A folder each: nodes that shared one would delete
        each other's copies of a job's working directory."""
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", "--object-store-memory=80000000"]
        command.append(f"--temp-dir={self.folder / name}")
        with (self.folder / f"{name}.out").open("w") as out:
            self.nodes[name] = subprocess.Popen(
                [*command, *options], cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def lose(self, name: str) -> None:
        """Hard: every process of the node at once, as when a machine loses power."""
        process = self.nodes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def stop(self) -> None:
        for kind, patience_s in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
            for process in self.nodes.values():
                try:
                    os.killpg(process.pid, kind)
                    process.wait(patience_s)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass

    def run(self, *command: str, cwd: Path = ROOT, limit_s: float = 250, **env: str) -> subprocess.CompletedProcess[str]:
        """A command as a user gives it who has the token."""
        return subprocess.run(list(command), cwd=cwd, env={**self.environment, **env}, text=True, capture_output=True, timeout=limit_s)

    def alive(self) -> int:
        """Nodes that are, by the dashboard."""
        request = urllib.request.Request(f"http://{self.dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
                summary = json.loads(reply.read())["data"]["summary"]
        except OSError:
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def add(self, name: str, cpus: int, limit_s: float = 200) -> None:
        """Until the cluster has one more. Ray gives a node 30 s to start, which a busy machine may not keep: then once more."""
        before, deadline = self.alive(), time.monotonic() + limit_s
        while self.alive() == before:
            assert time.monotonic() < deadline, (self.folder / f"{name}.out").read_text()[-1000:]
            if name not in self.nodes or self.nodes[name].poll() is not None:
                self.start(name, cpus, f"--address={self.gcs}", f"--dashboard-agent-listen-port={free_port()}")
            time.sleep(1)


def _answers(dashboard: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{dashboard}/api/version", timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False
    return True


@contextmanager
def head_node(token: str, cpus: int) -> Iterator[Machines]:
    """A head that answers, with dashboard and token, its own folder and ports; it and what is added to it ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="sh"))  # short: Ray's socket names have 107 bytes
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    gcs, dashboard = free_port(), free_port()
    environment = {k: v for k, v in without_ray_settings().items() if not k.startswith(("PYTHONPATH", "STUDYHALL_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # `python` of a job is the node's own
    }
    found = Machines(folder, f"127.0.0.1:{gcs}", f"127.0.0.1:{dashboard}", token, environment)
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    try:
        found.start("head", cpus, "--head", *ports, f"--dashboard-agent-listen-port={free_port()}")
        deadline = time.monotonic() + 120
        while not _answers(found.dashboard):
            assert found.nodes["head"].poll() is None and time.monotonic() < deadline, (folder / "head.out").read_text()[-2000:]
            time.sleep(0.5)
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
