"""What only some devices and settings can do, asked for by name: refused before anything starts where it cannot be."""

import importlib.util

import torch

from console import UserError
from trainer.config import TrainerConfig
from trainer.jobs.worker_settings import Precision
from trainer.kernels.compiled import choose_compile
from trainer.step.solo import as_run

_HOPPER = (9, 0)


def check_before_workers(trainer: TrainerConfig, gpus: int, precision: Precision, adapter: bool) -> None:
    """check_switches where nothing trains: for as many processes with a GPU each (0: on CPUs), with the engine that they will have. A machine without GPUs, as a cluster's head
    may be, knows nothing of its workers'; they refuse themselves."""
    if not gpus or torch.cuda.is_available():
        device = torch.device("cuda" if gpus else "cpu")
        check_switches(as_run(trainer, precision, adapter, processes=max(gpus, 1)), device, precision, adapter)


def check_switches(trainer: TrainerConfig, device: torch.device, precision: str, adapter: bool) -> None:
    """UserError where trainer.compile, cuda_graphs or fp8 cannot be had on this device with these settings. `adapter`: whether a stage trains one."""
    compiled, _ = choose_compile(trainer.compile, device)
    for name, reason in (
        ("cuda_graphs: true", _no_graphs(trainer, device, precision, compiled) if trainer.cuda_graphs else ""),
        (f"fp8: {trainer.fp8}", _no_fp8(trainer, device, precision, compiled, adapter) if trainer.fp8 != "off" else ""),
    ):
        if reason:
            raise UserError(f"trainer.{name} {reason}; leave it out")


def _no_graphs(trainer: TrainerConfig, device: torch.device, precision: str, compiled: bool) -> str:
    """A replayed graph writes to where it wrote before: what is kept from one micro-step to the next must have been copied out of it."""
    if device.type != "cuda":
        return f"needs a CUDA GPU (this is {device.type})"
    if not compiled:
        return "needs compiled layers (trainer.compile)"
    if trainer.shapes == "exact":
        return "needs rows of few shapes (trainer.shapes auto or static)"
    if precision != "bf16" or trainer.zero_stage != 1:
        return f"needs trainer.precision bf16 and trainer.zero_stage 1, which take every gradient at once (these are {precision}, {trainer.zero_stage})"
    if trainer.gradient_checkpointing:
        return "does not go with trainer.gradient_checkpointing, which computes layers again in the backward pass"
    return ""


def _no_fp8(trainer: TrainerConfig, device: torch.device, precision: str, compiled: bool, adapter: bool) -> str:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _HOPPER:
        return f"needs a GPU of Hopper's kind or later (this is {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type})"
    if precision != "bf16":
        return f"needs trainer.precision bf16 (this is {precision})"
    if not compiled:
        return "needs compiled layers (trainer.compile): without them it is slower than bf16"
    if trainer.zero_stage == 3:
        return "does not go with ZeRO-3, whose weights are shared out before they can be scaled"
    if adapter:
        return "does not go with adapters, whose frozen weights need no gradient"
    return "" if importlib.util.find_spec("torchao") else "needs the package torchao, which cannot be imported"
