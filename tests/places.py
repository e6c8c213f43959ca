"""Where the checkout lies, and what a command started by a test is given."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def without_ray_settings() -> dict[str, str]:
    """This environment without what points at a Ray or sets one up."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
