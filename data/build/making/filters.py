"""Which questions are worth training and asking: each rule a function of the question and its document, with a reason for people."""

import re
import unicodedata
from dataclasses import dataclass
from itertools import takewhile

from data.build.asking.prompts import Asked
from data.build.making.near import Benchmarks, Duplicates
from data.ground.words import holds, normalise, pieces
from data.records import Document

_MISSING = re.compile(
    r"(n/?a|none|null|unknown|unclear|unspecified|not (mentioned|specified|stated|provided|given|available|applicable|known)\b.*"
    r"|(the |this )?(information|answer|text|document|passage|summary)\b.{0,40}\b(missing|not|n't|no|unavailable|unknown)\b.*"
    r"|no (information|answer|mention)\b.*)[.!]?",
    re.IGNORECASE | re.DOTALL,
)
_SPEAKS_OF_THE_TEXT = re.compile(
    r"\b(according to|based on|mentioned in|described in|provided in|given in|in|from) (the|this) (given |above |following |provided |raw )?"
    r"(text|passage|document|summary|excerpt|article|paragraph|snippet)\b",
    re.IGNORECASE,
)
_SUBJECT_SHARE = 0.5
"""Of the title's words; a question seldom repeats a long title whole."""
_SUPPORT_SHARE = 0.8
"""Of an answer's words and numbers: "opened on the 3 May 2023" is supported by "It opened on 3 May 2023"; numbers must all stand there."""
_STEM_SHARE = 2 / 3
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+|[1-9]\d{0,2}(\.\d{3}){2,}")
QUESTION_NEAR = 0.8
QUESTION_RUN = 2


@dataclass(frozen=True, slots=True)
class Source:
    """A document as the rules look at it, normalised once for all its questions."""

    document: Document
    text: str
    words: frozenset[str]
    numbers: frozenset[str]

    @classmethod
    def of(cls, document: Document) -> "Source":
        text = normalise(document.text)
        return cls(document, text, frozenset([*text.split(), *pieces(text)]), frozenset(map(_value, _NUMBER.findall(document.text))))


def fault(asked: Asked, source: Source) -> tuple[str, str] | None:
    """(reason, excerpt) why a question is not used; None for a good one."""
    answer = right_answer(asked)
    if _MISSING.fullmatch(answer.strip()):
        return "says that the information is missing", answer
    if speaks_of_the_text(asked.question):
        return "speaks of its text instead of its subject", asked.question
    if source.document.title and not names(source.document.title, asked.question):
        return "does not name its subject", asked.question
    if holds(normalise(asked.question), normalise(answer)):
        return "holds its own answer", f"{asked.question} {answer}"
    if not supported(answer, source):
        return "answer not supported by the document", answer
    return None


def speaks_of_the_text(question: str) -> bool:
    return _SPEAKS_OF_THE_TEXT.search(question) is not None


def right_answer(asked: Asked) -> str:
    return asked.choices["ABCD".index(asked.answer)].strip() if asked.choices else asked.answer.strip()


def names(subject: str, question: str) -> bool:
    """Whether at least half of the subject's words stand in the question, in whatever case or number; very short words do not count."""
    wanted = pieces(normalise(subject))
    wanted = [word for word in wanted if len(word) > 2 or not word.isascii()] or wanted
    asked = frozenset(pieces(normalise(question)))
    return sum(_stands(word, asked, of_names=True) for word in wanted) >= _SUBJECT_SHARE * len(wanted)


def supported(answer: str, source: Source) -> bool:
    """Whether every phrase of an answer (they are separated by commas) stands in the document, word for word or nearly."""
    if holds(source.text, normalise(answer)):
        return True
    phrases = [part for part in re.split(r"(?<!\d),|,(?!\d)|[、，،]", answer) if normalise(part)]
    return bool(phrases) and all(_nearly(phrase, source) for phrase in phrases)


def _nearly(phrase: str, source: Source) -> bool:
    """Its numbers all as they are, for 2024 is no other form of 2023 and 5,000 not of 5 and 1,000; of its words most."""
    if holds(source.text, normalise(phrase)):
        return True
    numbers = _NUMBER.findall(phrase)
    if any(_value(number) not in source.numbers for number in numbers):
        return False
    words = pieces(normalise(_NUMBER.sub(" ", phrase)))
    return sum(_stands(word, source.words) for word in words) + len(numbers) >= _SUPPORT_SHARE * (len(words) + len(numbers))


def _value(number: str) -> str:
    """The same for 1500, 1,500 and ١٥٠٠; and for 05 and 5."""
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in number)
    if _GROUPED.fullmatch(digits):
        digits = re.sub(r"\D", "", digits)
    whole, point, rest = digits.replace(",", ".").partition(".")
    return f"{whole.lstrip('0') or '0'}{point}{rest}"


def _stands(word: str, words: frozenset[str], of_names: bool = False) -> bool:
    """Whether a word or another form of it is among these. Languages that inflect (Москва, в Москве; 서울, 서울에서) ask for that.

    Of ASCII words only where a subject is named: in an answer "Andersen" must not be supported by "Anderson".
    """
    return word in words or ((of_names or not word.isascii()) and any(_same_stem(word, other) for other in words))


def _same_stem(one: str, other: str) -> bool:
    """At least two thirds of the longer word are their common beginning, or one of two letters or more begins the other; never where digits differ."""
    short, long = sorted((one, other), key=len)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(short, long, strict=False)))
    if len(short) < 2 or any(c.isdigit() for c in short[shared:] + long[shared:]):
        return False
    return shared >= max(3, _STEM_SHARE * len(long)) or (shared == len(short) and not short.isascii())


class Unique:
    """No question twice, nor nearly so with the same answer: of other subjects other answers are right, however alike the wording.

    Give it the exam's questions first: then what is trained too is what goes.
    """

    def __init__(self, benchmarks: Benchmarks | None) -> None:
        self._known = Duplicates(QUESTION_NEAR, QUESTION_RUN)
        self._asked: dict[str, tuple[str, str]] = {}
        """Id → (split, normalised answer)."""
        self._benchmarks = benchmarks

    def fault(self, id: str, split: str, question: str, answer: str) -> tuple[str, str] | None:
        """Remembers a question that is new; (reason, detail) for one that is not."""
        if self._benchmarks is not None and self._benchmarks.holds_question(question, answer):
            return "shares a run of 13 words with a benchmark", question
        said = normalise(answer)
        if why := self._known.add(id, question, lambda twin: self._asked[twin][1] == said):
            twin = why[1].rpartition(" (similarity")[0] or why[1]
            asked_in = self._asked[twin][0]
            return ("asked twice", why[1]) if asked_in == split else (f"also asked in {asked_in}", why[1])
        self._asked[id] = (split, said)
        return None
