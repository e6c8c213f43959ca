"""What ranks do together with weights that lie in pieces among them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = tuple[int, int, int]
"""(rank, offset in the flattened tensor, values)."""


def rank_and_size() -> tuple[int, int]:
    """(0, 1) outside of a group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def cut(values: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """[begin, end) of a rank's share of a flattened tensor, as ZeRO-3 cuts it: equal ones, the last shorter or empty."""
    share = -(-values // num_ranks)
    return min(values, rank * share), min(values, (rank + 1) * share)


def even_parts(values: int, num_ranks: int) -> list[Part]:
    """All shares by `cut`."""
    cuts = [(rank, *cut(values, rank, num_ranks)) for rank in range(num_ranks)]
    return [(rank, begin, end - begin) for rank, begin, end in cuts if end > begin]


def assemble(parts: Sequence[Part], mine: Callable[[int, int], Tensor], values: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The whole tensor (values,) on `device` of every rank. A collective. `mine(offset, values)`: a part that this rank has, in `dtype`.

    Equal shares of all ranks come by one all-gather, others by a broadcast each. As bytes: not every back end knows every dtype.
    """
    rank, num_ranks = rank_and_size()
    assert sum(size for *_, size in parts) == values, "a piece is missing from what the ranks have"
    share = -(-values // num_ranks)
    if even := sorted(parts) == even_parts(values, num_ranks):
        whole = torch.empty(share * num_ranks, dtype=dtype, device=device)
    else:
        whole = torch.empty(values, dtype=dtype, device=device)
    own = torch.zeros(share if even else 0, dtype=dtype, device=device)
    for owner, offset, size in parts:
        part = own[:size] if even else whole[offset : offset + size]
        if owner == rank:
            part.copy_(mine(offset, size))
        if not even:
            torch.distributed.broadcast(part.view(torch.uint8), owner)
    if even and num_ranks > 1:
        torch.distributed.all_gather_single(whole.view(torch.uint8), own.view(torch.uint8))
    return (whole if num_ranks > 1 or not even else own)[:values]
