"""Which settings take the engine without DeepSpeed: one process whose optimiser is on its device, and nothing else."""

import pytest
import torch

from trainer.config import TrainerConfig
from trainer.step.solo import _alone, as_run, engine_of
from trainer.store.fragment_file import filled


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


def test_what_is_frozen_is_saved_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 copies of all frozen weights at once would be as much as 16 GB beside an 8B model at its first checkpoint."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    for parameter in module[0].parameters():
        parameter.requires_grad_(False)
    engine = engine_of(module, TrainerConfig(zero_stage=1), "bf16", torch.device("cpu"))
    held = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
    fragments = list(engine.fragments())
    assert [name for name, _, _ in fragments] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(values.untyped_storage().data_ptr() in held and values.dtype == torch.bfloat16 for _, _, values in fragments[:2])
    assert all(values.dtype == torch.float32 for _, _, values in fragments[2:])  # masters
    saved = dict((name, values) for name, _, values in filled(fragments).fragments())
    assert torch.equal(saved["0.weight"].view(8, 8), engine.module[0].weight.float()) and saved["0.weight"].dtype == torch.float32
    engine.close()
