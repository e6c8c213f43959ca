"""Secrets of the environment stay out of what people and logs see."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from console import EXIT_STOPPED, RunError, chatter_to, door, error_line, mask, masked, raised_in, run_child, say, secrets
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "hidden-value-1")
    monkeypatch.setenv("wandb_api_key", "hidden-value-12")
    monkeypatch.setenv("MY_TOKEN_PATH", "/run/secrets/one")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HARMLESS", "visible-value")


def test_which_are_secrets() -> None:
    found = secrets()
    assert {"hidden-value-1", "hidden-value-12"} <= set(found) and not {"/run/secrets/one", "false", "visible-value"} & set(found)
    assert found.index("hidden-value-12") < found.index("hidden-value-1")  # the longer first: no rest of it stays


def test_lines_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    say("error: https://me:hidden-value-12@host said hidden-value-1 and visible-value")
    assert capsys.readouterr().err == "error: https://me:***@host said *** and visible-value\n"


def test_chatter_is_masked_in_place(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    with chatter_to(log):
        os.write(1, b"a library prints hidden-value-12 twice: hidden-value-12\n")
        assert b"hidden" in log.read_bytes()  # the twin: it does reach the file
    assert log.read_bytes() == b"a library prints *************** twice: ***************\n"
    mask(log)
    (tmp_path / "empty").touch()
    mask(tmp_path / "empty")


def test_a_failing_run_is_masked_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError), chatter_to(tmp_path / "x.log"):
        os.write(2, b"hidden-value-1\n")
        raise ValueError
    assert b"hidden" not in (tmp_path / "x.log").read_bytes()


def of_torch() -> Exception:
    """An error that ends with its back ends, one a line."""
    import torch

    with pytest.raises(NotImplementedError) as raised:
        torch.ops.aten._cslt_compress(torch.empty(2, 2))
    assert len(str(raised.value).splitlines()) > 20
    return raised.value


def test_an_errors_line_is_its_first_with_its_type() -> None:
    error = of_torch()
    expected = "NotImplementedError: Could not run 'aten::_cslt_compress' with arguments from the 'CPU' backend."
    assert error_line(error).startswith(expected)
    assert error_line(KeyError()) == "KeyError"
    with pytest.raises(ValueError) as invalid:
        TypeAdapter(int).validate_python("x")
    assert error_line(invalid.value).startswith("ValidationError: 1 validation error for int: Input should be a valid integer")
    assert error_line(RunError("runs/x: no room")) == "runs/x: no room"  # ours is a person's line already


def test_of_a_remote_error_the_exception_inside() -> None:
    """Ray's: of a task, of an actor that could not start (text alone), of Ray Data (a wrapper around text), of Ray Train (by rank)."""
    from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException
    from ray.train import WorkerGroupError

    error = of_torch()
    frames = '\x1b[36mray::f()\x1b[39m (pid=1, ip=10.0.0.1)\n  File "/x/y.py", line 3, in f\n    g()\n    ^^^\n'
    remote = frames + f"some.module.NotImplementedError: {error}"
    first = "NotImplementedError: Could not run 'aten::_cslt_compress'"
    assert error_line(RayTaskError("f", remote, error)).startswith(first)
    assert error_line(RayTaskError("f", remote, error).as_instanceof_cause()).startswith(first)
    died = ActorDiedError()
    died.error_msg = "The actor died because of an error raised in its creation task, " + remote
    assert error_line(died).startswith(first)
    assert error_line(WorkerGroupError("[Rank 1 Error Snippet]: …", {3: ValueError("later"), 1: error})).startswith(first)
    wrapped = (
        remote + "\n\nThe above exception was the direct cause of the following exception:\n\nray.exceptions.UserCodeException: UDF failed"
    )
    assert error_line(RayTaskError("map", wrapped, UserCodeException("UDF failed"))).startswith(first)
    assert raised_in("no traceback\nhere") is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("s3://AKIA1:abc/def+1@bucket/x: no", "s3://AKIA1:abc/def+1@bucket/x: no"),  # a slash ends the host: pyarrow takes none either
        ("s3://AKIA1:abcdef@bucket/x: no", "s3://AKIA1:***@bucket/x: no"),
        ("s3://bucket/x?region=eu&secret_key=abc&scheme=http", "s3://bucket/x?region=eu&secret_key=***&scheme=http"),
        ("https://host/v1?api-token=abc', refused", "https://host/v1?api-token=***', refused"),
        ("postgresql://me@host:5432/db?sslmode=on", "postgresql://me@host:5432/db?sslmode=on"),  # the twin: nothing secret
        ("trainer: token=3 of 5; monkey=1", "trainer: token=3 of 5; monkey=1"),
    ],
)
def test_passwords_inside_addresses(said: str, shown: str, tmp_path: Path) -> None:
    assert masked(said) == shown
    log = tmp_path / "x.log"
    log.write_text(f"{said}\n")
    mask(log)
    assert (
        log.stat().st_size == len(said) + 1 and ("abcdef" in log.read_text()) is False and ("=abc" in log.read_text()) is ("=abc" in shown)
    )


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/runs/x"), "error: /runs/x: Permission denied; give another folder", 2),
        (OSError(errno.EROFS, "Read-only file system", b"/runs/x"), "error: /runs/x: Read-only file system; give a folder that can be", 2),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/x"),
            "error: /dev/null/x: Not a directory; a file is in the way",
            2,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free space there", 1),
        (OSError(errno.EIO, "Input/output error", "/runs/x"), "error: /runs/x: Input/output error", 1),
    ],
)
def test_what_the_file_system_refuses_is_one_line(error: OSError, line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str] | None) -> int:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            door(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert ended.value.code == code and said.startswith(line) and said.count("\n") == 1


CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
sys.path.insert(0, {root!r})
from pathlib import Path
from console import door, run_child
def work(argv):
    try:
        Path({begun!r}).touch()
        time.sleep(60)
    finally:
        Path({left!r}).unlink()  # what a context manager lets go
def main(argv):
    return run_child([sys.executable, __file__, "work"])
Path({left!r}).touch()
door(work if sys.argv[1:] else main)
"""


def test_sigterm_reaches_the_exam_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """`python -m trainer` runs the exam in a process of its own: a scheduler's SIGTERM ends both, with exit code 75."""
    begun, left, script = tmp_path / "begun", tmp_path / "left", tmp_path / "both.py"
    script.write_text(CHILD.format(root=str(ROOT), begun=str(begun), left=str(left)))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.02)
    parent.send_signal(signal.SIGTERM)
    said = parent.communicate(timeout=60)[1]
    assert parent.returncode == EXIT_STOPPED and not left.exists() and said.count("stopped as asked") == 1


def test_ctrl_c_waits_for_what_the_child_saves(tmp_path: Path) -> None:
    """A terminal tells both: the parent was gone after a quarter of a second, "everything saved", and the child still saving."""
    begun, left, script = tmp_path / "begun", tmp_path / "left", tmp_path / "both.py"
    script.write_text(
        CHILD.format(root=str(ROOT), begun=str(begun), left=str(left)).replace("    finally:\n", "    finally:\n        time.sleep(2)\n")
    )
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True) as parent:
        until = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(timeout=60) == 130
        assert not left.exists()


def test_codes_of_children_are_theirs() -> None:
    assert run_child([sys.executable, "-S", "-c", "raise SystemExit(2)"]) == 2
    assert run_child([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 15)"]) == EXIT_STOPPED


@pytest.mark.parametrize("room", ["trainer", "data", "evaluation", "tune", "cluster"])
def test_a_python_outside_the_environment_is_told_so(room: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", room, "-h"], cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": ""})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "has no rich; run .venv/bin/python" in done.stderr
