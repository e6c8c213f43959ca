"""The main job with secrets in its environment: none of them in anything it writes; and what listens while vLLM answers."""

from pathlib import Path

import pytest

from tests.conftest import MainJob
from tests.helpers.watched import CANARY, SECRETS, watch


def files_with(folder: Path, secret: bytes) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "auth_token"]
    assert len(found) > 30
    return [str(path.relative_to(folder)) for path in found if secret in path.read_bytes()]


@pytest.mark.timeout(600)
def test_no_secret_in_anything_that_was_written(main_job: MainJob) -> None:
    """Ray's session logs, our logs, manifests, reports, token stores, what the terminal showed."""
    folder, run = main_job
    assert any("session_" in str(path) for path in (folder / "ray").rglob("raylet.out"))
    assert files_with(folder, CANARY.encode()) == [] and CANARY not in run.stdout + run.stderr
    token = (folder / ".ray" / "auth_token").read_text()
    assert len(token) == 64 and files_with(folder, token.encode()) == []
    (folder / "twin.log").write_text(f"token={SECRETS['HF_TOKEN']}")
    try:
        assert files_with(folder, CANARY.encode()) == ["twin.log"]  # what is there is found
    finally:
        (folder / "twin.log").unlink()


def test_no_port_of_vllm(main_job: MainJob) -> None:
    """The engine is used in process. What listens besides are Ray's own ports, and nothing there serves vLLM's HTTP interface."""
    _, run = main_job
    listening = run.listening
    assert any(name.startswith("ray::Examiner") for _, name, _ in listening), sorted(listening)
    assert not [key for key, answer in listening.items() if answer.isdigit() and int(answer) < 400], listening
    assert not [name for _, name, _ in listening if "api_server" in name or "EngineCore" in name or "VLLM" in name]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_secret_in_what_a_failure_leaves(main_job: MainJob) -> None:
    """Tracebacks and stacks too."""
    folder, _ = main_job
    failed = watch(
        folder, folder / "small.yaml", "trainer", "--no-exam", "seed=1", "trainer.max_failures=0", STUDYHALL_FAIL="step.forward=raise@2"
    )
    assert failed.code == 1 and "made to fail" in failed.stderr, failed.stderr
    assert files_with(folder, CANARY.encode()) == [] and CANARY not in failed.stdout + failed.stderr
