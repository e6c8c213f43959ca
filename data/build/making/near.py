"""Texts that say the same: word for word, or nearly (MinHash, Broder 1997), and texts that a benchmark also holds."""

import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data.corpus.contamination import NUM_WORDS, run_hashes
from data.ground.words import normalise

_PERMUTATIONS = 128
_RUN = 5
"""Words of a shingle: the usual length for near-duplicates of documents (Lee et al., arXiv 2107.06499)."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
NEAR = 0.8
"""Estimated Jaccard similarity of shingles from which two documents are the same (there: 0.8)."""


def crc(word: str) -> int:
    """The same in every process, unlike hash(): which of two near-duplicates stays must not change between runs."""
    return zlib.crc32(word.encode())


class Duplicates:
    """Remembers texts by a hash and a signature (about 2 kB each), not the texts."""

    def __init__(self, near: float = NEAR, run: int = _RUN) -> None:
        """near: similarity from 0 to 1; 1 finds only texts that are equal after normalisation. run: words of a shingle."""
        self._near, self._run = near, run
        self._exact: dict[bytes, str] = {}
        self._signatures: dict[str, npt.NDArray[np.uint32]] = {}
        self._index: Any = None
        self._blank: Any = None

    def add(self, name: str, text: str, may_be: Callable[[str], bool] | None = None) -> tuple[str, str] | None:
        """Remembers a new text under its name, which is new. Of one that is known: (why, the known one's name and how near).

        may_be: of a text that is only nearly the same, whether the one of that name counts.
        """
        digest = _digest(text)
        if twin := self._exact.get(digest):
            return "the same text as another", twin
        if self._near < 1:
            signature = self._signature(text)
            if self._index is None:
                self._index = _index(self._near)
            for twin in sorted(self._index.query(signature)):
                similar = float((self._signatures[twin] == signature.hashvalues).mean())
                if similar >= self._near and (may_be is None or may_be(twin)):
                    return "nearly the same text as another", f"{twin} (similarity {similar:.2f})"
            self._index.insert(name, signature, check_duplication=False)
            self._signatures[name] = signature.hashvalues
        self._exact[digest] = name
        return None

    def _signature(self, text: str) -> Any:
        from datasketch import MinHash

        runs = run_hashes(text, self._run, crc)
        if not len(runs):  # shorter than a shingle: its words are
            runs = run_hashes(text, 1, crc)
        if self._blank is None:
            self._blank = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
        signature = self._blank.copy()  # to draw the permutations anew would take longer than a signature
        signature.update_batch(((runs * _SPREAD) >> np.uint64(32)).tolist())
        return signature


def _index(near: float) -> Any:
    from datasketch import MinHashLSH

    # A margin below the threshold: what the bands propose is measured before it counts.
    return MinHashLSH(threshold=max(0.1, near - 0.1), num_perm=_PERMUTATIONS)


def _digest(text: str) -> bytes:
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).digest()[:16]


class Benchmarks:
    """Runs of 13 words of texts that must not be trained on (GPT-3, arXiv 2005.14165, appendix C); shorter texts: as a whole."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        runs = [run_hashes(text, NUM_WORDS, crc) for text in texts]
        self._runs = np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.uint64)
        self._short = {normalise(text) for text, own in zip(texts, runs, strict=True) if not len(own)}

    def holds_question(self, question: str, answer: str) -> bool:
        """Runs may reach from a question into its answer; a short one is a benchmark's whatever the answer."""
        return normalise(question) in self._short or self.holds(f"{question} {answer}")

    def holds(self, text: str) -> bool:
        """Whether a document or a question shares a run with a benchmark, or is one of its shorter texts."""
        if normalise(text) in self._short:
            return True
        own = run_hashes(text, NUM_WORDS, crc)
        if not len(own) or not len(self._runs):
            return False
        at = np.searchsorted(self._runs, own).clip(max=len(self._runs) - 1)
        return bool((self._runs[at] == own).any())
