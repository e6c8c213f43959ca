"""Secrets of the environment stay out of what people and logs see."""

import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from console import RunError, chatter_to, error_line, mask, raised_in, say, secrets


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
