"""What the driver hands to its workers; apart from worker.py so that a driver need not import torch or DeepSpeed."""

from dataclasses import dataclass, field
from typing import Literal

from trainer.config import TrainerConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class WorkerSettings:
    run_folder: str
    model_folder: str
    """config.json, tokenizer and initial weights."""
    trainer: TrainerConfig
    precision: Precision
    seed: int
    use_gpu: bool
    parent_stage: str | None = None
    """Folder of a committed stage of another run whose fp32 weights the first stages start from, instead of the model folder's."""
    laid_out: dict[str, str] = field(default_factory=dict)
    """Model folders whose files are laid out otherwise than the network → where they have been written as it has them (trainer/network/converted.py)."""
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Folders that models are read from → the SHA-256 of each file, where trainer.local_copies needs them."""
    pause_after: dict[str, int] = field(default_factory=dict)
    """Of a stage (by key) so many steps are trained, saved as a checkpoint, and no stage after it: where a search looks at a trial."""
    paused_to: str | None = None
    """Folder that then gets the model as it is (trainer/export/paused.py); None: a checkpoint is enough."""
    explodes_at: float | None = None
    """A loss (median of five steps) above so many times that of the stage's first steps ends training with a RunError; None: never."""
