"""Who may use the cluster: Ray's version, its token, and whether its door is locked.

Whoever reaches an open Ray can run code on every node (docs/security.md). A Ray of our own is token-authenticated always; a cluster
that somebody else started is knocked at before work is given to it.
"""

import json
import os
import re
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from console import RunError, UserError, say

OLDEST_RAY = (2, 58)
"""Readers of Ray Data before it could be made to run code by the file they read."""
_OTHERS = 0o077


def check_version(version: str) -> None:
    """RunError for a Ray that is too old to be safe."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST_RAY:
        raise RunError(f"Ray {version} has known remote-code holes; use {'.'.join(map(str, OLDEST_RAY))} or newer (make setup)")


def secure_own_ray() -> None:
    """Before a Ray of our own starts: its token lies in a file that only we can read.

    Ray turns token authentication on by itself there, but writes the token with the process' umask: readable by all on most machines.
    UserError for a token file that is named and not there.
    """
    if (mode := os.environ.get("RAY_AUTH_MODE", "token").lower()) != "token":
        say(f"warning: RAY_AUTH_MODE={mode}: whoever reaches this machine can use its Ray; unset it")
    elif not os.environ.get("RAY_AUTH_TOKEN"):
        make_private(token_file())


def token_file() -> Path:
    """Where Ray looks for its token."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def make_private(path: Path) -> None:
    """Mode 0600; made with a new token where Ray's default file is missing. A file of somebody else's is only warned about."""
    if not path.exists():
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: no such file; make one with: ray get-auth-token --generate")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another run was first
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(uuid.uuid4().hex + uuid.uuid4().hex)
        return
    if path.stat().st_mode & _OTHERS:
        try:
            path.chmod(0o600)
        except OSError:
            say(f"warning: {path}: others can read Ray's token; chmod 600 it")


def check_open_door(num_nodes: int, dashboard: str, insecure: bool) -> None:
    """RunError for a cluster of several nodes that takes work without a token, unless `insecure`.

    dashboard: "host:port", or "" where none runs: then this process' own mode counts, as nodes and driver must share it.
    """
    if num_nodes < 2:
        return
    locked = refuses_strangers(dashboard) if dashboard else _by_token()
    if locked:
        return
    what = f"a cluster of {num_nodes} nodes without token authentication: whoever reaches it can run code on all of them"
    if not insecure:
        raise RunError(f"{what}; start its nodes with RAY_AUTH_MODE=token (docs/security.md), or give --insecure")
    say(f"warning: {what} (--insecure)")


def _by_token() -> bool:
    """Whether this process brings one, which nodes and driver must do alike."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def refuses_strangers(dashboard: str) -> bool:
    """Whether the job API at host:port turns away who brings no token (401 or 403). A job list is asked for; nothing is started. Where nobody answers, whether
    this process brings one."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer in its place
    try:
        with opener.open(f"http://{dashboard}/api/jobs/", timeout=10) as reply:
            json.loads(reply.read() or b"[]")
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):  # none where this process looks: on another node than the head's it is told the head's own 127.0.0.1
        return _by_token()
