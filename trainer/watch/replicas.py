"""What every rank holds alike must be alike: a flipped bit or a lost message on one rank makes its gradients those of another model."""

import torch

from console import RunError


def differing_rank(module: torch.nn.Module) -> tuple[int, str] | None:
    """(rank, parameter) where this process group's copies differ, or None. A collective: all ranks call it, all get the same answer.

    Compares sums of the weights' bits, exactly; reads every replicated weight once and sends 8 bytes a parameter. The rank is the one
    that differs from most others; of two ranks nobody can tell which is wrong, and the higher is named. Sharded parameters (ZeRO 3)
    have one copy and are left out.
    """
    named = [(name, p) for name, p in module.named_parameters() if not hasattr(p, "ds_tensor")]
    if not named or torch.distributed.get_world_size() == 1:
        return None
    sums = torch.stack([_bits(p.detach()).sum(dtype=torch.int64) for _, p in named])  # (parameters,)
    gathered = [torch.empty_like(sums) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, sums)
    table = torch.stack(gathered)  # (ranks, parameters)
    for column, (name, _) in enumerate(named):
        values = table[:, column].tolist()
        if len(set(values)) > 1:
            commonest = max(values, key=values.count)
            return next(rank for rank in reversed(range(len(values))) if values[rank] != commonest or values.count(commonest) == 1), name
    return None


def refuse_differences(module: torch.nn.Module, step: int) -> None:
    """RunError that names rank and parameter."""
    if (found := differing_rank(module)) is not None:
        raise RunError(
            f"rank {found[0]} holds other weights than the other ranks ({found[1]}, found after step {step + 1}): a fault of its memory, its "
            "GPU or its network; take that machine out. The last checkpoint may hold the fault: go back to one before it was first seen"
        )


def _bits(weights: torch.Tensor) -> torch.Tensor:
    return weights.contiguous().view({4: torch.int32, 2: torch.int16, 8: torch.int64}[weights.element_size()])
