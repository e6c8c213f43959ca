"""Half fine-tuning: in each round a part of the weights stays as it is, so that less of what they held is lost (HFT, arXiv 2404.18466).

By category, as in the paper: in every block the given share of the attention's matrices, of the feed-forward's and of the norms;
which ones is drawn anew in each round. Where a share of a block is no whole number (half of three feed-forward matrices), blocks
take turns, so that it holds over all. A matrix goes with its bias. Embeddings, the last norm and the output layer are always trained.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from math import floor

import torch
from torch import Tensor

from data.config import Stage
from trainer.store.weights import Weights

_IN_BLOCK = re.compile(r"(?P<block>.*?\.\d+)\.(?P<part>\w+)\.(?:.*\.)?\w+")


def frozen_parameters(shapes: dict[str, list[int]], share: float, seed: int, number: int) -> set[str]:
    """Names of the parameters that round `number` freezes, of a model with these parameters."""
    units: dict[str, list[str]] = {}  # q_proj with its weight and bias
    for name in shapes:
        units.setdefault(name.rpartition(".")[0], []).append(name)
    categories: dict[str, dict[str, list[str]]] = {}  # category → block → units
    for unit, names in units.items():
        if match := _IN_BLOCK.fullmatch(names[0]):
            category = match["part"] if any(len(shapes[name]) > 1 for name in names) else "norms"
            categories.setdefault(category, {}).setdefault(match["block"], []).append(unit)
    frozen: set[str] = set()
    for category, blocks in categories.items():
        due = done = 0.0
        for members in blocks.values():
            due += len(members) * share
            count = floor(due - done + 1e-9)
            done += count
            drawn = sorted(members, key=lambda unit: hashlib.sha256(f"{seed} {number} {category} {unit}".encode()).digest())
            frozen |= {name for unit in drawn[:count] for name in units[unit]}
    return frozen


def freeze(module: torch.nn.Module, stage: Stage, seed: int, number: int) -> None:
    """Takes the gradient from what this stage freezes; before an optimiser is made. `number`: of the stage in its arm."""
    if not stage.freeze_share:
        return
    parameters = dict(module.named_parameters())
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}  # under ZeRO-3 p itself is empty
    number = number if stage.freeze_round is None else stage.freeze_round
    for name in frozen_parameters(shapes, stage.freeze_share, seed, number):
        parameters[name].requires_grad_(False)


def exact_fragments(
    fragments: Iterable[tuple[str, int, Tensor]], module: torch.nn.Module, parent: Weights
) -> Iterator[tuple[str, int, Tensor]]:
    """An engine's fragments, those of frozen parameters as the parent has them: an engine in bf16 keeps them rounded, or not at all."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    yield from (fragment for fragment in fragments if fragment[0] not in frozen)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    yield from ((name, 0, parent.read(name).float().flatten()) for name in frozen[rank::world_size])
