"""How every benchmark writes down what it measured."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_result_file(name: str, figures: dict[str, Any], goal: dict[str, Any], holds: bool | None, **more: Any) -> None:
    """Writes results/<name>.json with the environment, and prints it. `holds` is None where nothing was measured."""
    result = {"name": name, "figures": figures, "goal": goal, "holds": holds, **more, "environment": environment()}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=FOLDER.parent)
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),  # of the last five minutes, this measurement included: how busy the machine was
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
    }
