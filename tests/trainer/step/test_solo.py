"""Which settings take the engine without DeepSpeed: one process whose optimiser is on its device, and nothing else."""

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.step.solo import _alone, as_run


@pytest.mark.parametrize(
    ("processes", "precision", "offload", "alone"),
    [(1, "fp32", False, True), (1, "bf16", False, True), (2, "fp32", False, False), (2, "bf16", False, False), (1, "bf16", True, False)],
)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_only_one_process(monkeypatch: pytest.MonkeyPatch, zero: int, processes: int, precision: str, offload: bool, alone: bool) -> None:
    """Nothing is sharded then; in bf16 the masters are beside the weights as under ZeRO 1, which CUDA graphs ask for."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    config = TrainerConfig.model_construct(zero_stage=zero, offload_optimizer=offload)
    assert _alone(config) == alone
    assert as_run(config, precision).zero_stage == ((0 if precision == "fp32" else 1) if alone else zero)  # type: ignore[arg-type]
    with_adapter = as_run(config, precision, adapter=True).zero_stage  # type: ignore[arg-type]
    assert with_adapter == (3 if zero == 3 and precision == "bf16" else as_run(config, precision).zero_stage)  # type: ignore[arg-type]
