"""DeepSpeed, in one file: its configuration, one optimiser step, and access to each rank's fp32 fragments."""

from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.model import matrices_and_rest
from trainer.worker_settings import Precision


def deepspeed_config(config: TrainerConfig, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's JSON for our settings; the only place that knows its keys."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        # A step has as many micro-steps as its items need: then every step() is the boundary (equal to plain torch
        # for ZeRO 0 to 3; tests/numerics).
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip or 1e30,  # 0 would skip the norm with the clipping
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # gradients of many micro-steps summed in bf16 lose the small ones
    return settings


class DeepSpeedEngine:
    """One stage's engine: own optimiser, own schedule. Expects torch.distributed to be initialised."""

    def __init__(self, module: torch.nn.Module, config: TrainerConfig, precision: Precision, device: torch.device) -> None:
        decayed, rest = matrices_and_rest(module)
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(config, precision), dist_init_required=False
        )
        self.module = self._engine.module
        self.device = device
        self.zero_stage = config.zero_stage
        self._world_size = torch.distributed.get_world_size()
        self._norm = float("nan")
        if config.zero_stage == 0:
            self._engine.clip_fp32_gradients = self._clip_and_keep_norm  # DeepSpeed's own forgets the norm

    def forward(self, **inputs: Any) -> Any:
        return self._engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        # Our weights already divide by the whole step's counts, and DeepSpeed averages gradients over ranks:
        # times world size turns that average back into the sum. There is no division by micro-steps to undo.
        self._engine.backward(loss * self._world_size)

    def step(self, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        return self._norm if self.zero_stage == 0 else float(self._engine.get_global_grad_norm())

    def _clip_and_keep_norm(self) -> None:
        self._norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._engine.gradient_clipping()))

    def set_fp32(self, name_to_weight: Any) -> None:
        """Gives the fp32 masters their exact values: wrapping rounded them to bf16. `name_to_weight(name)` → full tensor."""
        rank = torch.distributed.get_rank()
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            weight = name_to_weight(name).float()
            if self.zero_stage < 3:
                safe_set_full_fp32_param(parameter, weight.to(self.device))
                continue
            # DeepSpeed's setter of a whole parameter fails where its size does not divide by the world size: the last share is padded.
            share = parameter.ds_tensor.numel()
            flat = torch.nn.functional.pad(weight.flatten(), (0, share * self._world_size - weight.numel()))
            safe_set_local_fp32_param(parameter, flat[rank * share : (rank + 1) * share].to(self.device))

    def fragments(self) -> Iterator[tuple[str, int, Tensor]]:
        """This rank's share of the fp32 weights: (parameter, offset in the flattened parameter, values (n,)).

        Shares of all ranks cover every parameter once, whatever the ZeRO stage; nothing is gathered.
        """
        rank = torch.distributed.get_rank()
        for number, (name, parameter) in enumerate(self.module.named_parameters()):
            if self.zero_stage == 0 or not parameter.requires_grad:
                if self.zero_stage < 3 and number % self._world_size == rank:
                    yield name, 0, parameter.detach().float().flatten()
            elif self.zero_stage < 3:
                mapping = parameter._hp_mapping  # type: ignore[attr-defined]
                if mapping is not None:
                    yield name, mapping.lp_fragment_address.start, mapping.hp_fragment.detach().float().flatten()
            else:
                share = safe_get_local_fp32_param(parameter).detach().float().flatten()
                offset = rank * share.numel()
                real = max(0, min(share.numel(), parameter.ds_numel - offset))  # type: ignore[attr-defined]
                if real:  # ranks at the end hold padding only
                    yield name, offset, share[:real]

    def close(self) -> None:
        self._engine.destroy()
