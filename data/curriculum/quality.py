"""The best-scored part of a kind: what `best_share` of a stage keeps."""

from math import ceil

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Kind, Stage
from data.curriculum.catalogue import Catalogue


def chosen(stage: Stage, catalogue: Catalogue, kind: Kind) -> npt.NDArray[np.int64]:
    """Item numbers of a kind that the stage trains, in the order of the files: all, or the best-scored share, ties by id.

    Without records (declared counts) as many stand-ins.
    """
    numbers = catalogue.ranges[kind]
    everything = np.arange(numbers.start, numbers.stop)
    share = stage.best_share.get(kind, 1.0)
    if share == 1 or not len(everything):
        return everything
    keep = max(1, ceil(share * len(everything) - 1e-9))  # 0.1 × 30 is 3.0000000000000004
    if not catalogue.records:
        return everything[:keep]
    rows = catalogue.records[kind]
    assert isinstance(rows, list)  # check_quality has refused streamed ones
    best = sorted(range(len(rows)), key=lambda n: (-(rows[n].quality or 0.0), rows[n].id))
    return np.sort(everything[best[:keep]])


def check_quality(stage: Stage, catalogue: Catalogue) -> None:
    """UserError where a kind that is to be cut lacks scores."""
    for kind in stage.best_share if catalogue.records else ():
        rows = catalogue.records[kind]
        if not isinstance(rows, list):
            raise UserError(f"best_share of {kind}: a streamed source keeps no scores; leave out its `stream: true`")
        if lost := sum(row.quality is None for row in rows):
            raise UserError(f"best_share of {kind} needs a quality on every one of them; {lost} of {len(rows)} have none")
