"""Which pages are trained with their questions, which choose a curriculum, and which are the exam. A page never goes to two splits."""

import hashlib
import re
from collections.abc import Callable
from typing import Literal

from console import UserError
from data.build.making.reading import Unit

SplitName = Literal["train", "validation", "test"]
By = Literal["document", "date", "domain"]


_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?($|[T ])")
"""By ISO 8601, whose order is that of its characters; a time of day may follow."""


def split_units(units: list[Unit], by: By, test_share: float, validation_share: float, seed: int) -> dict[str, SplitName]:
    """Page → split; shares are of documents.

    `document`: pages at random, by a hash of their name and the seed, so that new files move few others. `date`: the newest are the exam,
    those before them the validation. `domain`: whole domains (a table's column, a page's category, else the topmost folder) at random: what
    is asked is then of another kind than what was practised.
    Raises UserError where a split would be empty, or pages have no date.
    """
    if by == "date" and (undated := [unit.name for unit in units if not unit.date]):
        raise UserError(
            f"--split date needs a date on every page; {len(undated)} of {len(units)} have none, e.g. {undated[0]}; "
            "give a column (--column date=COLUMN), front matter, or --split document"
        )
    if by == "date" and (other := [unit for unit in units if not _DATE.match(unit.date or "")]):
        raise UserError(
            f"--split date: {other[0].date} of {other[0].name} is no date that can be put in order ({len(other)} of {len(units)} pages); "
            "write YYYY-MM-DD, or use --split document"
        )
    if by == "domain":
        groups = _grouped(units, lambda unit: unit.domain or ".")
        order = sorted(groups, key=lambda name: _rank(name, seed))
    elif by == "date":
        groups = _grouped(units, lambda unit: (unit.date or "")[:10])  # pages of one day stay together
        order = sorted(groups, reverse=True)
    else:
        groups = _grouped(units, lambda unit: unit.name)
        order = sorted(groups, key=lambda name: _rank(name, seed))
    wanted: list[SplitName] = ["test", *(["validation"] if validation_share else []), "train"]  # type: ignore[list-item]
    if len(order) < len(wanted):
        what = {"document": "pages", "date": "dates", "domain": "domains"}[by]
        raise UserError(f"--split {by}: {len(order)} {what} cannot be {' and '.join(wanted)}; {_remedy(by, validation_share)}")
    return _dealt(groups, order, wanted, test_share, validation_share)


def _dealt(
    groups: dict[str, list[Unit]], order: list[str], wanted: list[SplitName], test_share: float, validation_share: float
) -> dict[str, SplitName]:
    total = sum(unit.documents for units in groups.values() for unit in units)
    quota = {"test": test_share * total, "validation": validation_share * total}
    dealt: dict[str, SplitName] = {}
    split, filled = 0, 0
    for position, name in enumerate(order):
        # what is left must still give every later split a group
        full = filled >= quota.get(wanted[split], float("inf")) or len(order) - position < len(wanted) - split
        if filled and full and split < len(wanted) - 1:
            split, filled = split + 1, 0
        for unit in groups[name]:
            dealt[unit.name] = wanted[split]
            filled += unit.documents
    return dealt


def _grouped(units: list[Unit], key: Callable[[Unit], str]) -> dict[str, list[Unit]]:
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(key(unit), []).append(unit)
    return groups


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _remedy(by: By, validation_share: float) -> str:
    if by != "document":
        return "use --split document"
    return "give more files" + (", or --validation-share 0" if validation_share else "")
