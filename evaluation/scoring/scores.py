"""Scores of one answer against its gold answers: pure functions of strings, the best over the gold answers.

Source: PIT (arXiv 2402.12847, §2.3): exact match after the normalisation of SQuAD and Natural Questions, answer
recall (the gold answer occurs in the output, yes or no), ROUGE-L.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from data.ground.words import apart, fold, holds, words

METRICS = ("em", "recall", "f1", "rouge_l")


Numbers = Literal["squad", "strict"]
"""How signs and points in numbers and names count: `squad` drops them ("1.5" is "15", "C++" is "C"), `strict` keeps what carries meaning."""


def score_answer(prediction: str, golds: Sequence[str], numbers: Numbers = "squad") -> dict[str, float]:
    """All METRICS of one answer, each in [0, 1]."""
    return {
        "em": exact_match(prediction, golds, numbers),
        "recall": recall(prediction, golds, numbers),
        "f1": token_f1(prediction, golds, numbers),
        "rouge_l": rouge_l(prediction, golds),
    }


def normalise(text: str, numbers: Numbers = "squad") -> str:
    """Folded, no punctuation, no articles (a, an, the), single spaces: SQuAD's evaluate-v1.1, character for character on ASCII.

    Beyond ASCII (data/ground/words.py): all Unicode punctuation goes as well (SQuAD keeps it), so that a curly apostrophe or an en dash equals its
    ASCII twin; one spelling for what NFKC and case folding make equal; scripts without spaces are split into characters.
    """
    return _spaced(re.sub(r"\b(a|an|the)\b", " ", _bare(text, numbers)))


def exact_match(prediction: str, golds: Sequence[str], numbers: Numbers = "squad") -> float:
    """1.0 where the normalised prediction is a normalised gold answer, else 0.0. Nothing said is never right."""
    return float(any(said == gold for said, gold in _pairs(prediction, golds, numbers)))


def recall(prediction: str, golds: Sequence[str], numbers: Numbers = "squad") -> float:
    """1.0 where a normalised gold answer stands in the normalised prediction, else 0.0.

    On word boundaries: "9" is not in "1995". (Token recall, a share, is another metric by the same name.) In scripts without spaces every
    character is a word, so there it is containment: 京都 is in 東京都.
    """
    return float(any(holds(said, gold) for said, gold in _pairs(prediction, golds, numbers)))


def token_f1(prediction: str, golds: Sequence[str], numbers: Numbers = "squad") -> float:
    """SQuAD's F1 of the bags of normalised words; in scripts without spaces of characters, as CMRC 2018 and JSQuAD have it."""
    return max((_f1(said.split(), gold.split()) for said, gold in _pairs(prediction, golds, numbers)), default=0.0)


def rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, without stemming (package rouge-score)."""
    if not golds:
        return 0.0
    return float(_rouge_scorer().score_multi(list(golds), prediction)["rougeL"].fmeasure)


def _bare(text: str, numbers: Numbers) -> str:
    text = fold(text)
    if numbers == "squad":
        return "".join(c for c in text if not _is_punctuation(c))
    for pattern, kept in _MEANT:
        text = pattern.sub(kept, text)
    return "".join(c for c in text if not _is_punctuation(c)).translate(_MEANING)


def _is_punctuation(c: str) -> bool:
    return c in string.punctuation or unicodedata.category(c).startswith("P")


def _spaced(text: str) -> str:
    return " ".join(apart(text).split())


_MEANING = str.maketrans({"\ue000": "-", "\ue001": ".", "\ue002": "+", "\ue003": "#"})
_MEANT = [  # what `strict` keeps, as private characters until punctuation is gone
    (re.compile(r"(?<![\w.)\]])[-−](?=\.?\d)"), "\ue000"),  # -5
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # 1,500 is 1500
    (re.compile(r"(?<=\d)[.,](?=\d)"), "\ue001"),  # 1.5, and 1,5 in much of Europe
    (re.compile(r"(?<!\d)\.(?=\d)"), "0\ue001"),  # .5
    (re.compile(r"(?<=\d)[-−–/:](?=\d)"), " "),  # 1990-1995, 3/4, 12:30
    (re.compile(r"(?<=[^\W\d_])\+(?=\+|\W|$)|(?<=\+)\+(?=\W|$)"), "\ue002"),  # C++
    (re.compile(r"(?<=[^\W\d_])#(?!\w)"), "\ue003"),  # C#
]


def _pairs(prediction: str, golds: Sequence[str], numbers: Numbers) -> list[tuple[str, str]]:
    """(prediction, gold), both normalised the same way; never with an empty gold.

    A gold answer of nothing but articles or punctuation ("A", "+") would normalise to nothing, and nothing stands in
    every output: such golds keep their articles, or failing that their punctuation. A blank gold answer matches nothing.
    """
    rules: list[Callable[[str], str]] = [
        lambda text: normalise(text, numbers),
        lambda text: _spaced(_bare(text, numbers)),
        lambda text: _spaced(fold(text)),
    ]
    pairs = []
    for gold in golds:
        for rule in rules:
            if wanted := rule(gold):
                pairs.append((rule(prediction), wanted))
                break
    return pairs


def _f1(said: list[str], gold: list[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


class _Words:
    """rouge-score's default tokenizer keeps [a-z0-9] only, so an answer in Cyrillic would be empty; this one knows all scripts."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # imports nltk: a second that a dry look at the module need not pay

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
