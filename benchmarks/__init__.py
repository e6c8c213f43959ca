"""Measurements by name, whatever section they lie in: `python -m benchmarks.gpu_8b` is benchmarks/on_gpu/gpu_8b.py."""

from pathlib import Path

__path__ += sorted(
    str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir() and folder.name not in ("results", "__pycache__")
)  # type: ignore[name-defined]
