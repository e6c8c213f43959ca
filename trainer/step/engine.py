"""DeepSpeed, in one file: its configuration, one optimiser step, and access to each rank's fp32 fragments."""

import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.jobs.worker_settings import Precision
from trainer.kernels.adamw import CutFreeAdamW
from trainer.kernels.leaves import NoLateGradients, layers_as_leaves
from trainer.kernels.wide_sums import widen_sums
from trainer.network.buffers import buffers
from trainer.network.model import matrices_and_rest
from trainer.store.fragment_file import MOMENTS as MOMENTS
from trainer.store.fragment_file import Fragment
from trainer.store.group import cut


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
        # ZeRO 1 adds each gradient to its fp32 sum and drops it at once; by default all are kept beside the sums until the step.
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # gradients of many micro-steps summed in bf16 lose the small ones
    return settings


# On CPU DeepSpeed would compile a shared-memory collective with g++ that training never calls: half a minute at the first start, and
# a lock file that a killed process leaves behind makes every later start wait for ever, without a word.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """One stage's engine: own optimiser, own schedule. Expects torch.distributed to be initialised."""

    pull: Callable[[float], None] | None = None
    """What is done to this rank's fp32 weights before every step, at its rate (trainer/teaching/ewc.py)."""

    def __init__(
        self, module: torch.nn.Module, config: TrainerConfig, precision: Precision, device: torch.device, saves_frozen: bool = True
    ) -> None:
        """`saves_frozen`: whether fragments hold parameters without gradient too; those beside an adapter are the parent's."""
        if precision == "bf16" and device.type == "cpu":
            widen_sums()
        decayed, rest = matrices_and_rest(module)
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        on_cpu = device.type == "cpu" or config.offload_optimizer
        self._adamw = CutFreeAdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, on_cpu=on_cpu)
        leaves = layers_as_leaves(module) if config.zero_stage == 3 else []
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=self._adamw, config=deepspeed_config(config, precision), dist_init_required=False
        )
        self.module = self._engine.module
        self.device = device
        self._watched: NoLateGradients | None = NoLateGradients(leaves)  # for the first backward pass
        self._saves_frozen = saves_frozen
        self.zero_stage = config.zero_stage
        self._world_size = torch.distributed.get_world_size()
        self._norm = float("nan")
        if config.zero_stage == 0:
            self._engine.clip_fp32_gradients = self._clip_and_keep_norm  # DeepSpeed's own forgets the norm
        elif config.zero_stage < 3 and on_cpu:
            self._optimizer.unscale_and_clip_grads = lambda gradients, norm: self._clip_in_step(float(norm), config.clip)

    def forward(self, **inputs: Any) -> Any:
        return self._engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        # Our weights already divide by the whole step's counts, and DeepSpeed averages gradients over ranks:
        # times world size turns that average back into the sum. There is no division by micro-steps to undo.
        self._engine.backward(loss * self._world_size)
        if self._watched:
            self._watched.close()
            self._watched = None

    def step(self, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._pull_at(rate)
        self._engine.step()
        return self._norm if self.zero_stage == 0 else float(self._engine.get_global_grad_norm())

    def _pull_at(self, rate: float) -> None:
        if pull := self.pull:
            self._adamw.first = lambda: pull(rate)

    def _clip_in_step(self, norm: float, clip: float) -> None:
        """What DeepSpeed multiplies gradients by, its loss scale being 1, is divided by where AdamW reads them."""
        self._adamw.divisor = max(1.0, (norm + 1e-6) / clip) if clip else 1.0

    def _clip_and_keep_norm(self) -> None:
        self._norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._engine.gradient_clipping()))
        if not math.isfinite(self._norm):  # ZeRO 1 to 3 skip such a step themselves
            for parameter in self.module.parameters():
                parameter.grad = None

    def set_fp32(self, whole: Callable[[str], Tensor], share: Callable[[str], Tensor] | None = None) -> None:
        """Gives the fp32 masters their exact values: wrapping rounded them to bf16. `whole(name)` → full tensor; `share(name)` → this rank's values of
        the flattened one, which are enough under ZeRO-3."""
        rank = torch.distributed.get_rank()
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            if self.zero_stage < 3:
                safe_set_full_fp32_param(parameter, whole(name).to(self.device).float())
                continue
            there: Any = parameter
            values = share(name) if share else whole(name).flatten()[slice(*cut(there.ds_numel, rank, self._world_size))]
            # DeepSpeed's setter of a whole parameter fails where its size does not divide by the world size: the last share is padded.
            padded = torch.zeros(there.ds_tensor.numel(), device=self.device)
            padded[: values.numel()].copy_(values)
            safe_set_local_fp32_param(parameter, padded)

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of the fp32 weights, and of what belongs to the model beside them: (parameter, offset in the flattened parameter, values (n,)).

        Shares of all ranks cover every parameter once, whatever the ZeRO stage; nothing is gathered. Values are views: copy them, into fp32 (what is frozen may lie in bf16).
        """
        for name, offset, real, values in self._shares():
            if real:  # ranks at the end may hold padding only
                yield name, offset, values("weight")[:real]
        for number, (name, buffer) in enumerate(buffers(self.module).items()):  # every rank has all of them
            if self._saves_frozen and number % self._world_size == torch.distributed.get_rank():
                yield name, 0, buffer.reshape(-1)

    def state_fragments(self) -> Iterator[Fragment]:
        """Weights as in `fragments`, then the moments of what is trained as "exp_avg/…" and "exp_avg_sq/…": all that a resume needs."""
        self._make_moments()
        yield from self.fragments()
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        for name, offset, real, values in self._shares():
            if real and name in trained:
                for moment in MOMENTS:
                    yield f"{moment}/{name}", offset, values(moment)[:real]

    def optimizer_steps(self) -> int:
        """Steps that AdamW has taken: skipped ones are not among them."""
        self._make_moments()
        return int(max((float(state["step"]) for state in self._adamw.state.values()), default=0.0))

    def set_moments(self, read: Callable[[str, str, int, int], Tensor], steps: int) -> None:
        """Gives AdamW its moments and its step count; read(moment, parameter, start, end) → values of the flattened parameter."""
        self._make_moments()
        for state in self._adamw.state.values():
            state["step"].fill_(steps)
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        for name, offset, real, values in self._shares(everywhere=True):
            if name in trained:
                for moment in MOMENTS:
                    values(moment)[:real].copy_(read(moment, name, offset, offset + real))

    def shares_of_trained(self) -> Iterator[tuple[str, int, int, Callable[[], Tensor]]]:
        """(parameter, first and last of this rank's values in it flattened, how to get the fp32 values in place): all that this rank's optimiser steps."""
        trained = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        for name, offset, real, values in self._shares(everywhere=True):
            if real and name in trained:
                yield name, offset, offset + real, lambda values=values, real=real: values("weight")[:real]  # type: ignore[misc]

    def _shares(self, everywhere: bool = False) -> Iterator[tuple[str, int, int, Callable[[str], Tensor]]]:
        """(parameter, offset, values that are no padding, kind → this rank's values in place).

        What every rank holds whole belongs to one of them, in turn; `everywhere`: to each.
        """
        rank = torch.distributed.get_rank()
        for number, (name, parameter) in enumerate(self.module.named_parameters()):
            if not (self._saves_frozen or parameter.requires_grad):
                continue
            if self.zero_stage == 3:
                offset, size = rank * parameter.ds_tensor.numel(), parameter.ds_numel  # type: ignore[attr-defined]
                real = max(0, min(parameter.ds_tensor.numel(), size - offset))  # type: ignore[attr-defined]
                yield name, offset, real, lambda kind, parameter=parameter: self._zero3_share(parameter, kind)  # type: ignore[misc]
            elif self.zero_stage == 0 or not parameter.requires_grad:
                if everywhere or number % self._world_size == rank:
                    yield name, 0, parameter.numel(), lambda kind, parameter=parameter: self._whole(parameter, kind)  # type: ignore[misc]
            elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                fragment = mapping.hp_fragment
                yield name, mapping.lp_fragment_address.start, fragment.numel(), lambda kind, f=fragment: self._zero12_share(f, kind)  # type: ignore[misc]

    def _whole(self, parameter: Tensor, kind: str) -> Tensor:
        values = parameter.detach() if kind == "weight" else self._adamw.state[parameter][kind]
        return values.view(-1)

    def _zero12_share(self, fragment: Tensor, kind: str) -> Tensor:
        if kind == "weight":
            return fragment.detach().view(-1)
        # The fragment is a window into one of the flat fp32 partitions, and the moments lie exactly as the partition does.
        flat = next(p for p in self._adamw.state if p.untyped_storage().data_ptr() == fragment.untyped_storage().data_ptr())
        start = fragment.storage_offset() - flat.storage_offset()
        return self._adamw.state[flat][kind].view(-1)[start : start + fragment.numel()]  # type: ignore[no-any-return]

    def _zero3_share(self, parameter: Any, kind: str) -> Tensor:
        if not parameter.requires_grad:
            return parameter.ds_tensor.detach().view(-1)  # type: ignore[no-any-return]
        optimizer = parameter._z3_optimizer
        values, _ = optimizer._get_fp32_opt_state_partition(parameter, False, None if kind == "weight" else kind)
        return values.detach().view(-1)  # type: ignore[no-any-return]

    def _make_moments(self) -> None:
        """AdamW makes its state at the first step; a resume sets it before, and a save at step 0 finds zeros."""
        flat = self._engine.optimizer.fp32_partitioned_groups_flat if self.zero_stage == 3 else None
        for parameter in flat or [p for group in self._adamw.param_groups for p in group["params"]]:
            if not self._adamw.state[parameter]:
                self._adamw.state[parameter].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
                )

    def close(self) -> None:
        """Ends the engine and gives back all that it held, the module too, whoever still has this object: the next stage needs the room."""
        self._engine.destroy()
        if self.zero_stage == 3:
            _forget(self.module)
        del self.module, self._engine, self._optimizer, self._adamw, self._watched
        self.pull = None
        for _ in range(2):  # DeepSpeed's objects know each other; some tensors are let go by the first round's
            gc.collect()


def _forget(module: torch.nn.Module) -> None:
    """What DeepSpeed 0.19 keeps of a ZeRO-3 module for the process's life: one list of it, and a method's cache."""
    parts = set(module.modules())
    parameter_offload.FWD_MODULE_STACK[:] = [other for other in parameter_offload.FWD_MODULE_STACK if other not in parts]
    cached: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    for cell in cached.__closure__:  # DeepSpeed's timing lies around it
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
