"""What a cell must come to: each item alone through plain transformers in fp32, one step of torch's AdamW; adapters by peft's own model."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.ground.adapters import Adapter
from tests.parity import items, models
from trainer.adapter.adapter import inject, peft_config, trained_parameters
from trainer.config import TrainerConfig
from trainer.network.families import folder_weights
from trainer.network.model import build_model
from trainer.step.freeze import frozen_parameters

CONFIG = TrainerConfig()
_NO_MATRIX = re.compile(r"(bias|norm\w*\.weight|A_log|ia3_l\.default)$", re.IGNORECASE)
"""Of two dimensions all the same: biases and norms of all experts or heads, a state space's rates, IA3's scales."""


def compute(folder: Path, trained: str, rows: str) -> dict[str, Any]:
    """loss, norm; by parameter that is trained: start, gradient (before clipping), stepped; by parameter that is not: kept; buffers."""
    stage = items.stage(trained, rows)
    module = models.plain(folder).train()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    if stage.adapter:
        module = _with_adapter(module, folder, stage.adapter)
    elif stage.freeze_share:
        shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
        for name in frozen_parameters(shapes, stage.freeze_share, items.SEED, items.NUMBER):
            module.get_parameter(name).requires_grad_(False)
    parameters = {name.removeprefix("base_model.model."): p for name, p in module.named_parameters()}
    taught = {name: p for name, p in parameters.items() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in taught.items()}
    loss = items_alone(module, rows)
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in taught.items()}
    norm = float(torch.nn.utils.clip_grad_norm_(list(taught.values()), CONFIG.clip))
    clipped = {name: gradient[name] if p.grad is None else p.grad for name, p in taught.items()}
    return {
        "loss": loss, "norm": norm, "start": start, "gradient": gradient, "buffers": buffers, "stepped": adamw(start, clipped),
        "kept": {} if stage.adapter else {name: p.detach() for name, p in parameters.items() if name not in taught},
    }  # fmt: skip


def _computed(folder: Path, trained: str, rows: str) -> dict[str, Any]:
    """ "failed" where the libraries alone cannot do it (peft on a layer it does not know): then the trainer must refuse."""
    try:
        return compute(folder, trained, rows)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def items_alone(module: Any, rows: str) -> float:
    """The mean of the items' mean losses, its gradients left in the module."""
    store = items.store(rows)
    total = 0.0
    for number in range(len(store.lengths)):
        ids, begin = torch.as_tensor(store.item(number).astype(np.int64)), int(store.loss_start[number])
        logits = module(input_ids=ids[None], use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[begin - 1 : -1], ids[begin:]) / len(store.lengths)
        loss.backward()
        total += float(loss.detach())
    return total


def _with_adapter(module: Any, folder: Path, adapter: Adapter) -> Any:
    """peft's own model, started where the trainer starts: a random start is a choice, not a computation."""
    from peft import get_peft_model

    ours = build_model(str(folder), "eager", torch.float32)
    weights = folder_weights(folder)  # read by this rank alone: the other computes other cells meanwhile
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(weights.read(name).view(parameter.shape))
    inject(ours, adapter, items.SEED, items.NUMBER)
    start = trained_parameters(ours)
    model = get_peft_model(module, peft_config(adapter, module))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(start[name.removeprefix("base_model.model.")].detach())
    return model


def adamw(start: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after one step of torch's AdamW by the trainer's settings: matrices are decayed, the rest is not."""
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    for name, weight in weights.items():
        weight.grad = gradients[name].clone()
    groups = [
        {"params": [w for name, w in weights.items() if not _NO_MATRIX.search(name) and w.dim() > 1], "weight_decay": CONFIG.weight_decay},
        {"params": [w for name, w in weights.items() if _NO_MATRIX.search(name) or w.dim() <= 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW([g for g in groups if g["params"]], lr=items.RATE, betas=CONFIG.betas, foreach=False).step()
    return {name: weight.detach() for name, weight in weights.items()}


def path_of(folder: Path, trained: str, rows: str) -> Path:
    return folder.with_name(f"{folder.name}-{trained}-{rows}.oracle")


def main(out: Path, world_size: int, rank: int, *wanted: str) -> None:
    """Saves OUT/FAMILY, the model, and the oracle of each of `wanted` ("llama lora long"), where they are not there yet; ranks share the work."""
    each = [one.split() for one in wanted]
    if rank == 0:
        for family in dict.fromkeys(family for family, *_ in each):
            if not (out / family).exists():
                models.save(family, out / family)
    torch.distributed.barrier()
    for family, trained, rows in each[rank::world_size]:
        path = path_of(out / family, trained, rows)
        if not path.exists():
            torch.save(_computed(out / family, trained, rows), path)
