"""Multiple choice from our ChoiceQuestion records: how it is asked, what the predictions say, and what they are worth.

Three forms, because one can be right for the wrong reason: the letters with the options as printed in the source, the letters
with the options shuffled, and the text of each option as the answer. Beside them stand what needs no knowledge (always one
letter), how the predicted letters are spread, and how much of the exam stands in training. Pure: evaluation/harness.py runs it.
"""

import hashlib
import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.records import ChoiceQuestion, Question
from data.wording.templates import question_prompt
from evaluation.benchmarks_config import ChoicesConfig
from evaluation.scoring.aggregate import as_dict
from evaluation.scoring.statistics import cluster_bootstrap, document_clusters, paired_difference

Form = Literal["printed", "shuffled", "text"]
FORMS: tuple[Form, ...] = ("printed", "shuffled", "text")
LETTERS = string.ascii_uppercase
_LABEL = r"\s*\(?{letter}\s*[).:]\s*(?=\S)"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question in one form."""

    id: str
    doc_id: str | None
    prompt: str
    options: tuple[str, ...]
    """Of which the likelihood is measured, each after `prompt` and a space."""
    gold: int


def bare_options(choices: Sequence[str]) -> list[str]:
    """Options without the letters that the source printed before them ("A) …", "b. …"), where all of them have theirs."""
    found = [re.match(_LABEL.format(letter=LETTERS[i]), text, flags=re.IGNORECASE) for i, text in enumerate(choices[: len(LETTERS)])]
    if len(choices) < 2 or len(found) < len(choices) or not all(found):
        return [text.strip() for text in choices]
    return [text[match.end() :].strip() for text, match in zip(choices, found, strict=True) if match]


def ask(question: ChoiceQuestion, form: Form, seed: int, passages: Sequence[str] = ()) -> Asked:
    """`passages` stand before the question, each followed by a blank line."""
    options, gold = bare_options(question.choices), question.answer_index
    before = "".join(f"{passage}\n\n" for passage in passages)
    if form == "text":
        return Asked(question.id, question.doc_id, before + question_prompt(question.question), tuple(options), gold)
    if form == "shuffled":
        order = list(range(len(options)))
        random.Random(hashlib.sha256(f"{seed}:{question.id}".encode()).digest()).shuffle(order)
        options, gold = [options[i] for i in order], order.index(gold)
    lines = [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
    prompt = before + "\n".join([question.question, *lines, "Answer:"])
    return Asked(question.id, question.doc_id, prompt, tuple(LETTERS[: len(options)]), gold)


def open_questions(choices: Sequence[ChoiceQuestion]) -> list[Question]:
    """The same questions without their options: the right option's text is the answer."""
    return [Question(c.id, c.question, (bare_options(c.choices)[c.answer_index],), c.doc_id) for c in choices]


def predictions(asked: Sequence[Asked], likelihoods: Mapping[str, Sequence[float]], form: Form) -> list[int]:
    """The likeliest option of each; texts are compared per byte, for a long one is never likely. Equal ones: the first."""
    best = []
    for one in asked:
        scores = list(likelihoods[one.id])
        if form == "text":
            scores = [score / max(1, len(option.encode())) for score, option in zip(scores, one.options, strict=True)]
        best.append(max(range(len(scores)), key=lambda i, s=scores: (s[i], -i)))  # type: ignore[misc]
    return best


def judge(asked: Sequence[Asked], predicted: Sequence[int], form: Form, leaked: set[str], resamples: int, seed: int) -> dict[str, Any]:
    """What one model's predictions in one form are worth. At least one question.

    {"n", "right", "accuracy": interval, "letters": predicted letter → share, "clean": accuracy on questions that were not trained or null};
    of the two letter forms also "gold": letter → count, "minus_constant": accuracy minus always giving the commonest letter, paired.
    """
    clusters = document_clusters([one.doc_id for one in asked])
    right = [float(p == one.gold) for p, one in zip(predicted, asked, strict=True)]
    clean = [i for i, one in enumerate(asked) if one.id not in leaked]
    counts = Counter(LETTERS[p] for p in predicted)
    result: dict[str, Any] = {
        "n": len(asked),
        "right": int(sum(right)),
        "accuracy": as_dict(cluster_bootstrap(right, clusters, resamples, seed)),
        "letters": {letter: counts[letter] / len(asked) for letter in _letters(asked)},
        "clean": None,
    }
    if clean and len(clean) < len(asked):
        result["clean"] = as_dict(cluster_bootstrap([right[i] for i in clean], [clusters[i] for i in clean], resamples, seed))
    if form != "text":
        gold = gold_letters(asked)
        constant = [float(LETTERS[one.gold] == commonest(gold)) for one in asked]
        result |= {"gold": gold, "minus_constant": as_dict(paired_difference(right, constant, clusters, resamples, seed))}
    return result


def gold_letters(asked: Sequence[Asked]) -> dict[str, int]:
    """How often each letter is right: what always giving it would score."""
    counts = Counter(LETTERS[one.gold] for one in asked)
    return {letter: counts[letter] for letter in _letters(asked)}


def commonest(gold: Mapping[str, int]) -> str:
    return max(gold, key=lambda letter: gold[letter])


def _letters(asked: Sequence[Asked]) -> str:
    return LETTERS[: max(len(one.options) for one in asked)]


def findings(block: Mapping[str, Any], config: ChoicesConfig) -> list[str]:
    """What a reader must know before believing the scores, in sentences; block: see evaluation/harness.py."""
    said = []
    leak = block["leakage"]
    if leak["share"] >= config.leakage_share:
        said.append(
            f"High leakage: {leak['count']:,} of {block['questions']:,} exam questions ({100 * leak['share']:.0f} %) stand verbatim in training, "
            "so these scores say how well questions are remembered; look at the scores without them."
        )
    for arm, modes in block["arms"].items():
        for mode, forms in modes.items():
            for form, result in forms.items():
                name = f"`{arm}`" + (f", {mode}" if mode != "closed" else "") + f", {form}"
                said += [f"{name}: {text}" for text in _doubts(result, form, config)]
    return said


def _doubts(result: Mapping[str, Any], form: str, config: ChoicesConfig) -> list[str]:
    if form == "text":
        return []
    said = []
    n, gold = result["n"], result["gold"]
    letter, share = max(result["letters"].items(), key=lambda item: item[1])
    collapsed = share > config.collapse_share
    if collapsed:
        said.append(f"its predictions collapse to one letter: {100 * share:.1f} % are {letter}.")
    if same := [other for other, count in gold.items() if count == result["right"] and count]:
        always, count = " or ".join(same), result["right"]
        said.append(f"its score equals always answering {always}, {count:,} of {n:,} ({100 * count / n:.2f} %), to the question.")
    best, minus = commonest(gold), result["minus_constant"]
    if minus["low"] <= 0:
        known = "does not beat" if minus["high"] >= 0 else "is worse than"
        said.append(
            f"{100 * result['right'] / n:.1f} % {known} always answering {best} ({100 * gold[best] / n:.1f} %): "
            f"{100 * minus['mean']:+.1f} points (95 % interval {100 * minus['low']:.1f} to {100 * minus['high']:.1f}).".replace("-", "−")
        )
    return said
