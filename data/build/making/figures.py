"""How different written texts are, from each other, from their documents and from the exam: figures for people, and for choosing a method.

Compression ratio and distinct n-grams as Shaib et al. compare them (arXiv 2403.00553). Both say less of more text, so compare builds of one
size, or the forms of one build.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data.build.making.near import crc
from data.corpus.contamination import run_hashes
from data.ground.words import normalise, tokens_estimated

RUN = 5
"""Words of a run that two texts share."""
_DISTINCT = (2, 4)
_FEWEST = 4
_HELD_AT_ONCE = 1 << 20
"""Hashes of n-grams that wait to be counted, 8 bytes each."""
Runs = npt.NDArray[np.uint64]


def runs_of(text: str) -> Runs:
    """Distinct runs of five words, by hash."""
    return np.unique(run_hashes(text, RUN, crc))


class Exam:
    """Questions that are examined, as texts must not hold them."""

    def __init__(self, questions: Iterable[str]) -> None:
        """Those of under four words stand in any text and count for none."""
        self._by_beginning: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = {}
        runs = []
        for question in questions:
            words = tuple(normalise(question).split())
            if len(words) >= _FEWEST:
                self._by_beginning.setdefault(words[:_FEWEST], []).append((words, question))
            runs.append(runs_of(question))
        self.runs = np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.uint64)

    def held(self, text: str) -> list[str]:
        """The questions that stand in a text, word for word."""
        words = tuple(normalise(text).split()) if self._by_beginning else ()
        return [
            question
            for at in range(len(words) - _FEWEST + 1)
            for known, question in self._by_beginning.get(words[at : at + _FEWEST], ())
            if words[at : at + len(known)] == known
        ]


class _Distinct:
    """n-grams counted, and the distinct ones kept by hash."""

    def __init__(self, n: int) -> None:
        self._n, self.all, self._kept, self._new, self._waiting = n, 0, np.empty(0, dtype=np.uint64), list[Runs](), 0

    def add(self, text: str) -> None:
        found = run_hashes(text, self._n, crc)
        self.all += len(found)
        self._new.append(found)
        self._waiting += len(found)
        if self._waiting > max(_HELD_AT_ONCE, len(self._kept)):
            self._merge()

    def _merge(self) -> None:
        self._kept = np.unique(np.concatenate([self._kept, *self._new]))
        self._new, self._waiting = [], 0

    def share(self) -> float:
        self._merge()
        return round(len(self._kept) / self.all, 4) if self.all else 0.0


class Figures:
    """Of the texts of one form."""

    def __init__(self, exam: Exam) -> None:
        self._exam, self._seen = exam, np.zeros(len(exam.runs), dtype=bool)
        self.texts = self.tokens = self.read = self.written = self._bytes = self._packed = self._runs = self._copied = 0
        self._packer, self._distinct = zlib.compressobj(), [_Distinct(n) for n in _DISTINCT]

    def paid(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Of every reply, used or not."""
        self.read += prompt_tokens
        self.written += answer_tokens

    def add(self, text: str, runs: Runs, document: Runs | None = None) -> None:
        """runs: runs_of(text); document: those of the one it was written from."""
        self.texts += 1
        self.tokens += tokens_estimated(text)
        data = text.encode("utf-8", "surrogatepass") + b"\n"
        self._bytes += len(data)
        self._packed += len(self._packer.compress(data))
        for distinct in self._distinct:
            distinct.add(text)
        self._seen |= np.isin(self._exam.runs, runs)
        if document is not None:
            self._runs += len(runs)
            self._copied += int(np.isin(runs, document).sum())

    def as_dict(self) -> dict[str, Any]:
        """texts, tokens (estimated); read, written: tokens of the replies; compression: bytes by bytes that zlib makes of them; distinct_2, _4: of
        all runs of so many words; copied: of their runs of five words those that stand in their document; exam: of the exam questions' runs those
        that stand in a text."""
        self._packed += len(self._packer.flush())
        self._packer = zlib.compressobj()
        return {
            **{"texts": self.texts, "tokens": self.tokens, "read": self.read, "written": self.written},
            "compression": round(self._bytes / self._packed, 3) if self._bytes else 0.0,
            **{f"distinct_{n}": distinct.share() for n, distinct in zip(_DISTINCT, self._distinct, strict=True)},
            "copied": round(self._copied / self._runs, 4) if self._runs else 0.0,
            "exam": round(float(self._seen.mean()), 4) if len(self._seen) else 0.0,
        }
