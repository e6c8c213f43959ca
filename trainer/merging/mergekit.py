"""mergekit (https://github.com/arcee-ai/mergekit) in an environment of its own: other ways to add models up, and the oracle of our own sum.

`make mergekit` builds .venv-mergekit; nothing here imports it.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from console import RunError

ABSENT = "mergekit is not installed here (make mergekit builds .venv-mergekit; STUDYHALL_MERGEKIT names another mergekit-yaml)"
_ROOT = Path(__file__).resolve().parent.parent.parent
_LAST_LINES = 5


def mergekit_command() -> str | None:
    """Path of mergekit-yaml, None where it is not installed."""
    path = Path(os.environ.get("STUDYHALL_MERGEKIT") or _ROOT / ".venv-mergekit/bin/mergekit-yaml")
    return str(path) if path.is_file() else None


def mergekit_environment() -> dict[str, str]:
    """Ours, but for what would put this checkout's rooms before mergekit's imports or ask the hub."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def run_mergekit(config: dict[str, Any], out: Path, seed: int) -> None:
    """Writes the model that `config` (mergekit's own format, paths absolute: it works in out's folder) describes to `out`.

    RunError with mergekit's last words where it fails.
    """
    command = mergekit_command()
    assert command is not None, ABSENT
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    written = out.with_name(f"{out.name}.yaml")
    written.write_text(yaml.safe_dump(config))
    arguments = [command, str(written), str(out), "--random-seed", str(seed), "--no-copy-tokenizer", "--no-write-model-card"]
    done = subprocess.run(arguments, env=mergekit_environment(), cwd=out.parent, text=True, capture_output=True)
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RunError(f"mergekit ended with exit code {done.returncode}: {' | '.join(lines[-_LAST_LINES:])[-400:] or 'no output'}")
