"""Scores of one answer against its gold answers: pure functions of strings, the best over the gold answers.

Source: PIT (arXiv 2402.12847, §2.3): exact match after the normalisation of SQuAD and Natural Questions, answer
recall (the gold answer occurs in the output, yes or no), ROUGE-L.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

METRICS = ("em", "recall", "f1", "rouge_l")


def score_answer(prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """All METRICS of one answer, each in [0, 1]."""
    return {
        "em": exact_match(prediction, golds),
        "recall": recall(prediction, golds),
        "f1": token_f1(prediction, golds),
        "rouge_l": rouge_l(prediction, golds),
    }


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles (a, an, the), single spaces: SQuAD's evaluate-v1.1, character for character on ASCII.

    Beyond ASCII all Unicode punctuation goes as well (SQuAD keeps it), so that a curly apostrophe or an en dash
    equals its ASCII twin, and canonically equal spellings (é as one or two code points) are one.
    """
    text = re.sub(r"\b(a|an|the)\b", " ", _bare(text))
    return " ".join(text.split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where the normalised prediction is a normalised gold answer, else 0.0. Nothing said is never right."""
    return float(any(said == gold for said, gold in _pairs(prediction, golds)))


def recall(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where a normalised gold answer stands in the normalised prediction, else 0.0.

    On word boundaries: "9" is not in "1995". (Token recall, a share, is another metric by the same name.) Scripts
    written without spaces have no such boundaries, so there this equals exact match on each run of characters.
    """
    return float(any(f" {gold} " in f" {said} " for said, gold in _pairs(prediction, golds)))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """SQuAD's F1 of the bags of normalised words."""
    return max((_f1(said.split(), gold.split()) for said, gold in _pairs(prediction, golds)), default=0.0)


def rouge_l(prediction: str, golds: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, without stemming (package rouge-score)."""
    if not golds:
        return 0.0
    return float(_rouge_scorer().score_multi(list(golds), prediction)["rougeL"].fmeasure)


def _bare(text: str) -> str:
    text = unicodedata.normalize("NFC", text).lower()
    return "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))


def _pairs(prediction: str, golds: Sequence[str]) -> list[tuple[str, str]]:
    """(prediction, gold), both normalised the same way; never with an empty gold.

    A gold answer of nothing but articles or punctuation ("A", "+") would normalise to nothing, and nothing stands in
    every output: such golds keep their articles, or failing that their punctuation. A blank gold answer matches nothing.
    """
    pairs = []
    for gold in golds:
        for rule in (normalise, lambda text: " ".join(_bare(text).split()), lambda text: " ".join(text.lower().split())):
            if wanted := rule(gold):
                pairs.append((rule(prediction), wanted))
                break
    return pairs


def _f1(said: list[str], gold: list[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


class _Words:
    """rouge-score's default tokenizer keeps [a-z0-9] only, so an answer in Cyrillic would be empty; this one knows all letters."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).lower())


@cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # imports nltk: a second that a dry look at the module need not pay

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
