"""Who may use the cluster: Ray's job API with and without a token, the token's file, clusters that let anybody in."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.guard import check_open_door, check_version, make_private, refuses_strangers, secure_own_ray
from console import RunError, UserError
from tests.conftest import ROOT, without_ray_settings
from tests.helpers.machines import Machines, free_port, head_node

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def head() -> Iterator[Machines]:
    """A real Ray head with dashboard and token, in processes of its own."""
    with head_node(TOKEN, cpus=2) as found:
        yield found


def post(head: Machines, **headers: str) -> int:
    """The HTTP status of a job submission; 0: nobody answers yet."""
    request = urllib.request.Request(
        f"http://{head.dashboard}/api/jobs/",
        json.dumps({"entrypoint": "true"}).encode(),
        {"Content-Type": "application/json", **headers},
        method="POST",
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_job_needs_the_token(head: Machines) -> None:
    assert post(head) == 401
    assert post(head, Authorization="Bearer " + "f" * 64) == 403
    deadline = time.monotonic() + 60  # the agent that starts jobs comes up after the door: until then 500, also with the token
    while (status := post(head, Authorization=f"Bearer {TOKEN}")) in (0, 500) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert status == 200  # the twin: it is the token that decides


def test_the_door_is_seen_to_be_locked(head: Machines) -> None:
    assert refuses_strangers(head.dashboard)
    check_open_door(2, head.dashboard, insecure=False)


def test_the_dashboard_binds_to_loopback(head: Machines) -> None:
    """Ray's default, which nothing of ours changes: not reachable by the address that other machines see."""
    port = int(head.dashboard.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address faces the network
        outward = probe.getsockname()[0]
    if outward.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError):
        socket.create_connection((outward, port), timeout=3).close()
    for room in ("cluster", "trainer", "evaluation"):
        assert not any("dashboard_host" in path.read_text() for path in (ROOT / room).rglob("*.py"))


CONNECT = """
import ray
from console import door
from cluster.connect import connected
def main(_):
    with connected(cpus_needed=1):
        print("inside", ray.cluster_resources()["CPU"])
door(main)
"""


def connect(head: Machines, **environment: str) -> subprocess.CompletedProcess[str]:
    env = head.environment | {"RAY_ADDRESS": head.gcs} | environment
    return subprocess.run([sys.executable, "-c", CONNECT], cwd=ROOT, env=env, text=True, capture_output=True, timeout=110)


def test_connected_uses_the_token(head: Machines) -> None:
    done = connect(head)
    assert done.returncode == 0 and "inside 2" in done.stdout, done.stderr


def test_connected_without_the_right_token_is_one_line(head: Machines, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("f" * 64)
    done = connect(head, RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert done.returncode == 1 and "inside" not in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: RAY_ADDRESS="), done.stderr
    assert TOKEN not in done.stderr + done.stdout


def test_ray_writes_no_token_into_its_logs(head: Machines) -> None:
    logs = [path for path in (head.folder / "head").rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 5
    assert [str(path) for path in logs if TOKEN.encode() in path.read_bytes()] == []


# --- several nodes --------------------------------------------------------------------------------------------------

TWO_NODES = """
import os, sys
from ray.cluster_utils import Cluster
from console import RunError, door
from cluster.connect import connected
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000})
cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
os.environ["RAY_ADDRESS"] = cluster.address
def main(_):
    try:
        for insecure in (False, True):
            try:
                with connected(cpus_needed=1, insecure=insecure):
                    print("inside")
            except RunError as error:
                print(f"error: {error}", file=sys.stderr)
    finally:
        cluster.shutdown()
door(main)
"""


@pytest.mark.parametrize(
    "mode, inside, messages",
    [("disabled", 1, [f"{kind}: a cluster of 2 nodes without token authentication" for kind in ("error", "warning")]), ("token", 2, [])],
)
def test_two_nodes_without_token_are_refused(mode: str, inside: int, messages: list[str], tmp_path: Path) -> None:
    """First as it is, then with --insecure."""
    (tmp_path / "token").write_text(TOKEN)
    env = without_ray_settings()
    env |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", TWO_NODES], cwd=ROOT, env=env, text=True, capture_output=True, timeout=110)
    assert done.returncode == 0 and done.stdout == "inside\n" * inside, done.stderr
    said = [line for line in done.stderr.splitlines() if "token authentication" in line]
    assert len(said) == len(messages) and all(map(str.startswith, said, messages)), done.stderr


def test_door_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers where a driver on another node looks: Ray gives it the head's own 127.0.0.1. Then its own mode counts, as where there is no dashboard."""
    check_open_door(1, "", insecure=False)
    for nobody in (f"127.0.0.1:{free_port()}", ""):
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        check_open_door(2, nobody, insecure=False)
        monkeypatch.delenv("RAY_AUTH_MODE")
        with pytest.raises(RunError, match="--insecure"):
            check_open_door(2, nobody, insecure=False)


def test_an_open_door_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of test_the_door_is_seen_to_be_locked: a server that answers 200."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"127.0.0.1:{server.server_port}"
        assert not refuses_strangers(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")  # says nothing about a cluster that somebody else started
        with pytest.raises(RunError, match="--insecure"):
            check_open_door(2, address, insecure=False)
    finally:
        server.shutdown()
        server.server_close()


# --- version and token file -----------------------------------------------------------------------------------------


def test_old_ray_is_refused() -> None:
    import ray

    check_version(ray.__version__)
    for version in ("2.58.0", "2.100.1", "3.0.0rc1"):
        check_version(version)
    for version in ("2.57.1", "2.9.0", "1.13.0"):
        with pytest.raises(RunError, match="use 2.58 or newer"):
            check_version(version)


def test_the_token_file_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    secure_own_ray()
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600 and len(token) == 64
    path.chmod(0o644)
    secure_own_ray()
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == token
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH=.*no such file; .*ray get-auth-token"):
        make_private(tmp_path / "nowhere")


OWN_RAY = """
import os, pathlib, ray
from cluster.connect import connected
with connected(cpus_needed=1):
    from ray._raylet import AuthenticationMode, get_authentication_mode
    assert get_authentication_mode() == AuthenticationMode.TOKEN
    print(oct(pathlib.Path.home().joinpath(".ray/auth_token").stat().st_mode & 0o777))
"""


def test_a_ray_of_our_own_has_a_token(tmp_path: Path) -> None:
    env = without_ray_settings() | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", OWN_RAY], cwd=ROOT, env=env, text=True, capture_output=True, timeout=110)
    assert done.returncode == 0 and done.stdout.strip() == "0o600", done.stderr[-2000:]
