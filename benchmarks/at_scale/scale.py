"""A model with the 723 tensors of a 70B Llama at a thousandth of its size, and a stage of it as 64 ranks leave one under ZeRO-3: for benchmarks.scale_*."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
OLD = "06945e2"
RANKS, HIDDEN, LAYERS = 64, 256, 80


def model_config(hidden: int, layers: int) -> Any:
    """Llama 2 70B has a hidden size of 8,192 and 80 layers; all else follows it."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32_000 * hidden // 8192, hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=max(1, hidden // 256), head_dim=32, max_position_embeddings=128,
        tie_word_embeddings=False,
    )  # fmt: skip


def make_stage(folder: Path, hidden: int, layers: int, num_ranks: int) -> dict[str, list[int]]:
    """model/ (config alone) and stages/first/ with the weights that `num_ranks` ranks have written; the shapes of its parameters."""
    from trainer.network.families import make_network
    from trainer.store.fragment_file import write_fragments
    from trainer.store.stages import write_json

    model_config(hidden, layers).save_pretrained(folder / "model")
    shapes = {name: list(p.shape) for name, p in make_network(folder / "model").named_parameters()}
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator).flatten() for name, shape in shapes.items()}
    files = {}
    for rank in range(num_ranks):
        cuts = {name: ceil(len(flat) / num_ranks) for name, flat in values.items()}
        pieces = [(name, rank * cuts[name], flat[rank * cuts[name] : (rank + 1) * cuts[name]]) for name, flat in values.items()]
        files[f"weights/rank-{rank:05d}.safetensors"] = write_fragments(
            folder / "stages/first/weights", rank, (piece for piece in pieces if len(piece[2]))
        )
    write_json(folder / "stages/first/manifest.json", {"shapes": shapes, "world_size": num_ranks, "files": files})
    return shapes


def old_build(place: Path) -> Path | None:
    """A checkout of the build that is measured beside this one; None where this one has no history."""
    target = place / "old"
    done = subprocess.run(["git", "worktree", "add", "--detach", str(target), OLD], cwd=ROOT, capture_output=True)
    return target if done.returncode == 0 else None


def forget(build: Path | None) -> None:
    if build:
        subprocess.run(["git", "worktree", "remove", "--force", str(build)], cwd=ROOT, capture_output=True)
        shutil.rmtree(build, ignore_errors=True)


def asked_for_tiny(name: str, doc: str | None) -> bool:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--tiny", action="store_true", help="8 ranks of 3 layers, some of them: that it runs; no result is written")
    return parser.parse_args().tiny  # type: ignore[no-any-return]


@contextmanager
def stage_and_old_build(num_ranks: int, layers: int) -> Iterator[tuple[Path, dict[str, list[int]], Path | None]]:
    """A run folder with the stage, in a folder that goes with its end; the shapes of the stage's parameters; the older build."""
    with tempfile.TemporaryDirectory() as place:
        old = old_build(Path(place))
        try:
            yield Path(place) / "run", make_stage(Path(place) / "run", HIDDEN, layers, num_ranks), old
        finally:
            forget(old)


def ranks(build: Path, what: str, folder: Path, first: int, last: int, num_ranks: int, zero_stage: int = 3) -> list[dict[str, Any]]:
    """What benchmarks/at_scale/scale_rank.py finds with this build for ranks first to last."""
    numbers = [str(number) for number in (first, last, num_ranks, zero_stage)]
    command = [sys.executable, str(ROOT / "benchmarks/at_scale/scale_rank.py"), what, str(folder), *numbers]
    environment = {**os.environ, "PYTHONPATH": str(build), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what}, {build.name}: {done.stderr[-3000:]}")
    found = [dict(json.loads(line.removeprefix("RESULT "))) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(found) == last - first + 1
    return found
