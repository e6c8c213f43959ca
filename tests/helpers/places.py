"""Where the checkout lies, and what a command started by a test is given."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Of every process that a test starts: sums are rounded by their number, and a library may set this process's to 1 meanwhile.

Three processes of tests share two cores; OMP_NUM_THREADS=2 make test gives everything two. Set before torch is imported.
"""


def without_ray_settings() -> dict[str, str]:
    """This environment without what points at a Ray or sets one up."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
