"""Groups of processes without Ray, through the fork server (tests/helpers/forked.py)."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.places import ROOT, THREADS


class Groups:
    """Starts groups of training processes through the fork server (tests/helpers/forked.py)."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": THREADS, "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forked"],
            cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        assert json.loads(self._answer()) == {"ready": True}

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the fork server died"
        return line

    def __call__(self, experiment: Path, *overrides: str, world_size: int = 2, limit_s: float = 60, **env: str) -> list[int]:
        """Exit codes of the ranks; env: e.g. STUDYHALL_FAIL="step.begin=kill@7"."""
        request = {"experiment": str(experiment), "overrides": overrides, "world_size": world_size, "env": env, "limit_s": limit_s}
        return self._codes(request)

    def call(self, module: str, out: Path, world_size: int, *arguments: str, limit_s: float = 240) -> Path:
        """Runs main(out, world_size, rank, *arguments) of a module in a gloo group of this many processes; returns out."""
        request = {"module": module, "out": str(out), "arguments": arguments, "world_size": world_size, "env": {}, "limit_s": limit_s}
        codes = self._codes(request)
        failed = next((rank for rank, code in enumerate(codes) if code > 0), 0)
        assert codes == [0] * world_size, (codes, self.error, (out / f"{failed}.log").read_text()[-3000:])
        return out

    def command(
        self, room: str, *arguments: str, env: dict[str, str] | None = None, timeout_s: float = 240, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """python -m room arguments, without the seconds that its imports take; `env` is added to this environment, `typed` what stdin holds."""
        with (
            tempfile.NamedTemporaryFile("r") as stdout,
            tempfile.NamedTemporaryFile("r") as stderr,
            tempfile.NamedTemporaryFile("w") as stdin,
        ):
            stdin.write(typed)
            stdin.flush()
            request = {"command": [room, *arguments], "env": {**os.environ, **(env or {})}, "limit_s": timeout_s}
            answer = self._asked(request | {"stdin": stdin.name, "stdout": stdout.name, "stderr": stderr.name})
            done = subprocess.CompletedProcess([room, *arguments], answer["codes"][0], stdout.read(), stderr.read())
        if answer["late"]:
            raise subprocess.TimeoutExpired(done.args, timeout_s, done.stdout, done.stderr)
        return done

    def _codes(self, request: dict[str, Any]) -> list[int]:
        answer = self._asked(request)
        self.error = answer.get("error", "")
        return list(answer["codes"])

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            return dict(json.loads(self._answer()))
        except BaseException:  # a test's time was up: its answer would be the next one's
            self.close()
            self._start()
            raise

    def close(self) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)  # and the groups that it has started
        self._server.wait(timeout=10)
