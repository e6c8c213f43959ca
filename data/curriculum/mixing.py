"""Mixtures by source: of every step's items so many of each named source, in shares that may change over the stage (`sources` of a stage)."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.curriculum.quality import chosen

RngOf = Callable[[str], np.random.Generator]


def pools(stage: Stage, catalogue: Catalogue) -> dict[str, Items]:
    """The stage's items of each named source, in the order of the files. UserError for a source without items and an item without a source."""
    items = np.concatenate([chosen(stage, catalogue, kind) for kind in stage.mix.kinds()])
    names = list(_names(stage, catalogue))
    found = {name: items[[other == name for other in names]] for name in stage.sources}
    for name, own in found.items():
        if not len(own):
            known = ", ".join(sorted({other for other in names if other is not None})) or "no source has a name"
            raise UserError(f"sources.{name}: the stage mixes no item of a source of this name; named in data.sources are: {known}")
    if len(lost := items[[name not in stage.sources for name in names]]):
        raise UserError(
            f"sources: {len(lost)} of the stage's {len(items)} items are of none of them, e.g. {catalogue.ids[int(lost[0])]}; give their source a name and a share"
        )
    return found


def _names(stage: Stage, catalogue: Catalogue) -> Iterator[str | None]:
    for kind in stage.mix.kinds():
        numbers, rows = catalogue.ranges[kind], catalogue.records.get(kind)
        if not isinstance(rows, list):
            what = "a streamed source keeps no names" if rows is not None else "without data there are no names: give data.root"
            raise UserError(f"sources: {kind}: {what}")
        yield from (rows[int(n) - numbers.start].named for n in chosen(stage, catalogue, kind))


def by_source(stage: Stage, of_source: dict[str, Items], rng_of: RngOf) -> list[Items]:
    """The items of each step; of each source every item once before any comes again, and by every step as many as its shares until then ask for, ±1."""
    assert stage.steps and stage.batch_items
    wanted = counts_of(list(stage.sources.values()), stage.steps, stage.batch_items)
    drawn = []
    for (name, pool), number in zip(of_source.items(), wanted.T, strict=True):
        total, passes = int(number.sum()), []
        for n in range(-(-total // len(pool))):
            passes.append(rng_of(f"source {name}, pass {n}").permutation(pool))
        drawn.append(np.split(np.concatenate([np.empty(0, dtype=np.int64), *passes])[:total], np.cumsum(number)[:-1]))
    rng = rng_of("within steps")
    return [rng.permutation(np.concatenate(of_step)) for of_step in zip(*drawn, strict=True)]


def counts_of(shares: list[tuple[float, float]], steps: int, batch_items: int) -> npt.NDArray[np.int64]:
    """(steps, sources): items of each source in each step, `batch_items` in every one.

    A share goes in a line from its first value to its second; what a step cannot take whole is made up for in those after it.
    """
    first, last = (np.array(ends, dtype=np.float64) for ends in zip(*shares, strict=True))
    along = np.linspace(0, 1, steps)[:, None] if steps > 1 else np.zeros((1, 1))
    targets = np.cumsum((first + (last - first) * along) * batch_items, axis=0)
    counts, drawn = np.zeros((steps, len(shares)), dtype=np.int64), np.zeros(len(shares), dtype=np.int64)
    for step, target in enumerate(targets):
        owed = target - drawn
        counts[step] = np.maximum(0, np.floor(owed + 1e-9))
        for _ in range(batch_items - int(counts[step].sum())):
            counts[step, int(np.argmax(owed - counts[step]))] += 1
        for _ in range(int(counts[step].sum()) - batch_items):
            counts[step, int(np.argmax(np.where(counts[step] > 0, counts[step] - owed, -np.inf)))] -= 1
        drawn += counts[step]
    return counts


def prove_shares(stage: Stage, of_source: dict[str, Items], items: Items) -> None:
    """Each source as often as its shares ask for, each of its items as often as any other, give or take one."""
    assert stage.steps and stage.batch_items
    times = np.bincount(items, minlength=1 + max(int(pool.max()) for pool in of_source.values()))
    assert len(items) == stage.steps * stage.batch_items
    for (name, pool), (first, last) in zip(of_source.items(), stage.sources.values(), strict=True):
        assert times[pool].max() - times[pool].min() <= 1, f"each item of {name} once before any comes again"
        asked = (first + last) / 2 * stage.steps * stage.batch_items if stage.steps > 1 else first * stage.batch_items
        assert abs(times[pool].sum() - asked) < len(stage.sources), f"{name}: {times[pool].sum()} items, {asked:.1f} asked for"
