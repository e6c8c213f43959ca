"""Which settings take the engine without DeepSpeed: one process in fp32, and nothing else."""

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.step.solo import _solo, as_run


@pytest.mark.parametrize(
    ("processes", "precision", "offload", "alone"),
    [(1, "fp32", False, True), (1, "bf16", False, False), (2, "fp32", False, False), (1, "fp32", True, False)],
)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_only_one_process_in_fp32(
    monkeypatch: pytest.MonkeyPatch, zero: int, processes: int, precision: str, offload: bool, alone: bool
) -> None:
    """bf16 without sharding is DeepSpeed's too: it holds the fp32 masters."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    config = TrainerConfig.model_construct(zero_stage=zero, offload_optimizer=offload)
    assert _solo(config, precision) == alone  # type: ignore[arg-type]
    assert as_run(config, precision).zero_stage == (0 if alone else zero)  # type: ignore[arg-type]
