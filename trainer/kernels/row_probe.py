"""Whether a full row's items are what each would be alone: tried with the lengths that the rows really have.

Twenty tokens do not show what depends on length or place: frequencies chosen by a row's longest item (long rope), chunks and temperatures counted from a row's start
(Llama 4). So three rows are computed: a long item among short ones and copies of one item; the same with short items in the long one's place; and the first in reverse.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = npt.NDArray[np.int64]
LogitsOf = Callable[[Ids, npt.NDArray[np.int32], Ids], Tensor]
"""(input_ids (T,), cu_seqlens, positions (K,)) → logits (K, V) at these positions of a packed row."""
_SHORT = (11, 9)
_COPIES = 16
_LOOKED_AT = 16
"""Tokens of an item whose logits are compared: its last one and others evenly before it."""


@dataclass(frozen=True)
class ProbeRow:
    input_ids: Ids
    cu_seqlens: npt.NDArray[np.int32]
    starts: dict[str, list[int]]
    """Name of an item → where it starts; copies have one name."""


def displacement(logits_of: LogitsOf, vocab_size: int, row_tokens: int, longest: int, typical: bool = False) -> float:
    """Largest difference between an item's logits and the same item's elsewhere in a row, or beside others, as a share of the item's largest logit.

    `typical`: of an item's tokens the median counts instead of the worst: where experts share products one token in a few may be routed otherwise by rounding alone.
    """
    items, rows = probe_rows(vocab_size, row_tokens, longest)
    seen: dict[str, list[Tensor]] = {}
    for row in rows:
        places = [(name, start) for name, starts in row.starts.items() for start in starts]
        looked = [start + _looked_at(len(items[name])) for name, start in places]
        logits = logits_of(row.input_ids, row.cu_seqlens, np.concatenate(looked)).float()
        for (name, _), own in zip(places, logits.split([len(at) for at in looked]), strict=True):
            seen.setdefault(name, []).append(own)
    return max(apart(own, first, typical) for first, *others in seen.values() for own in others)


def apart(own: Tensor, first: Tensor, typical: bool) -> float:
    """Largest difference of two items' logits (K, V), as a share of the largest logit; `typical`: see displacement."""
    by_token = (own - first).abs().amax(dim=-1)
    return float((by_token.median() if typical else by_token.max()) / first.abs().max())


def _looked_at(length: int) -> Ids:
    return np.unique(np.linspace(length - 1, 0, min(length, _LOOKED_AT)).astype(np.int64))


def probe_rows(vocab_size: int, row_tokens: int, longest: int) -> tuple[dict[str, Ids], list[ProbeRow]]:
    """Items by name, and the three rows; each has at most `row_tokens` tokens and no item is longer than `longest`."""
    rng = np.random.default_rng(0)
    first, last = (min(n, longest) for n in _SHORT)
    copy = min(longest, max(5, row_tokens // _COPIES))
    long = max(1, min(longest, row_tokens - first - last - 2 * copy))
    items = {name: rng.integers(0, vocab_size, n) for name, n in (("a", first), ("long", long), ("b", last), ("copy", copy))}
    others = {f"other {n}": rng.integers(0, vocab_size, len(part)) for n, part in enumerate(_pieces(items["long"], max(first, long // 64)))}
    items |= others
    copies = ["copy"] * max(1, min(_COPIES, (row_tokens - first - long - last) // copy))
    order = ["a", "long", "b", *copies]
    return items, [_row(items, order), _row(items, ["a", *others, "b", *copies]), _row(items, order[::-1])]


def _pieces(item: Ids, size: int) -> list[Ids]:
    return [item[at : at + size] for at in range(0, len(item), size)]


def _row(items: dict[str, Ids], order: list[str]) -> ProbeRow:
    boundaries = np.concatenate([[0], np.cumsum([len(items[name]) for name in order])]).astype(np.int32)
    starts: dict[str, list[int]] = {}
    for name, start in zip(order, boundaries, strict=False):
        if not name.startswith("other"):
            starts.setdefault(name, []).append(int(start))
    return ProbeRow(np.concatenate([items[name] for name in order]), boundaries, starts)


def not_moved(precision: str) -> float:
    """Bound of `displacement`: a token's place in a row changes the blocks of matrix products and with them the order of sums.

    Each of some hundred operations between a token and its logits rounds to within u (fp32 2⁻²⁴, bf16 2⁻⁹), and errors add up like a random walk or, at worst, grow with
    their number: 10³ u in fp32; in bf16, where 10³ u would allow everything, 25 u. What it is meant to find moves logits by whole units.
    """
    return {"fp32": 1e3 * 2**-24, "bf16": 25 * 2**-9}[precision]
