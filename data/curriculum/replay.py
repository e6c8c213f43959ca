"""Replay by share: a few documents that a model knew before, among new ones, so that it forgets less (arXiv 2403.08763: 1 to 10 %)."""

from collections.abc import Callable

import numpy as np

from data.config import Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items


class Replay:
    """Documents of the replay split in the order in which a stage draws them: each once before any comes again.

    Of batches counted in items the share is one of items, of batches counted in tokens one of tokens; riding questions do not count.
    """

    def __init__(
        self, stage: Stage, catalogue: Catalogue, lengths: Items | None, rng_of_pass: Callable[[int], np.random.Generator]
    ) -> None:
        """`rng_of_pass`: the generator that shuffles the n-th pass over the replay documents."""
        numbers = catalogue.ranges["replay_documents"]
        self._documents = np.arange(numbers.start, numbers.stop)
        self._factor = stage.replay_share / (1 - stage.replay_share)  # of the whole → of the stage's own
        self._costs = lengths if stage.batch_tokens else np.ones(len(catalogue), dtype=np.int64)
        self._rng_of_pass = rng_of_pass
        self._pass, self._left = 0, np.empty(0, dtype=np.int64)
        self._own = self._drawn = 0

    def draw(self, own: Items) -> Items:
        """What joins the next epoch, whose own items are these. A share too small for one document an epoch adds up over epochs."""
        if not self._factor:
            return np.empty(0, dtype=np.int64)
        assert self._costs is not None
        self._own += int(self._costs[own].sum())
        taken: list[int] = []
        while True:
            if not len(self._left):
                self._left = self._rng_of_pass(self._pass).permutation(self._documents)
                self._pass += 1
            cost = int(self._costs[self._left[0]])
            if self._drawn + cost / 2 > self._own * self._factor:  # nearest, not below
                return np.array(taken, dtype=np.int64)
            taken.append(int(self._left[0]))
            self._left = self._left[1:]
            self._drawn += cost
