"""Questions in other words, written by a model and checked by rule and by a model: what `data wordings` and `data build --wordings` leave beside a set."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.build.asking.exchange import Answers, Reply, Request
from data.build.asking.prompts import Misread, Template, read_list, read_same, schema
from data.build.making.account import Account
from data.build.making.filters import names, speaks_of_the_text
from data.build.making.near import Benchmarks
from data.ground.words import holds, normalise

FILE = "wordings.jsonl"
SPARE = 2
"""So many more are asked for than are wanted: some are no good."""
_TOKENS_A_WORDING = 60
_CHECK_TOKENS = 24
_LONGEST = 300
"""Characters."""
_TEMPERATURE = 0.7
"""Greedy, a model copies."""
Ask = Callable[[Iterable[Request], str, str], dict[str, str]]
"""Has requests answered, by who writes ("write") or who checks ("check"); returns why some cannot be (key → reason). The text is for people."""


@dataclass(frozen=True, slots=True)
class Original:
    """A question that is wanted in `number` other wordings."""

    id: str
    split: str
    question: str
    answer: str
    title: str | None
    """Of its document."""
    number: int


@dataclass(frozen=True, slots=True)
class Writers:
    """Who writes and who checks, by name; `check` False: the rules alone."""

    model: str
    checker: str
    seed: int
    bounded: bool
    check: bool = True

    def to_write(self, original: Original, attempt: int) -> Request:
        number = original.number + SPARE
        values = {"question": original.question, "answer": original.answer, "most": str(number)}
        wanted = schema("wordings", number, self.bounded)
        return Request(
            original.id,
            _filled("write", values),
            wanted,
            _TOKENS_A_WORDING * (number + 1),
            self.seed + attempt,
            self.model,
            _TEMPERATURE,
        )

    def to_check(self, original: Original, wording: str) -> Request:
        values = {"question": original.question, "answer": original.answer, "wording": wording}
        return Request(original.id, _filled("check", values), schema("same", 1, self.bounded), _CHECK_TOKENS, self.seed, self.checker)


@functools.cache
def _template(name: str) -> Template:
    text = Path(__file__).with_name("wordings.yaml").read_text(encoding="utf-8")
    return Template.model_validate(yaml.safe_load(text)[name])


def _filled(name: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    return _template(name).filled(values)


def first_requests(originals: Iterable[Original], writers: Writers) -> Iterator[Request]:
    """What the first attempt asks, for an estimate; checks come on top."""
    return (writers.to_write(original, 0) for original in originals)


def make_wordings(
    originals: list[Original],
    taken: Iterable[str],
    writers: Writers,
    answers: Answers,
    ask: Ask,
    tries: int,
    account: Account,
    benchmarks: Benchmarks | None = None,
) -> list[dict[str, Any]]:
    """Rows of FILE: {"id", "split", "question", "wordings", "model", "reply"}, of the questions that have any.

    `taken`: all questions of the set; what asks another one of them is no wording of this one, nor is what was kept for another.
    """
    declined: dict[str, str] = {}
    for attempt in range(tries):
        todo = (writers.to_write(one, attempt) for one in originals if _written(one, writers, answers, attempt) is None)
        declined |= ask(todo, "write", "wordings" if attempt == 0 else "written again")
    candidates = list(_by_rule(originals, set(map(normalise, taken)), writers, answers, tries, declined, account, benchmarks))
    if writers.check:
        ask((writers.to_check(one, wording) for one, _, words in candidates for wording in words), "check", "compared")
    rows = []
    for original, reply, words in candidates:
        kept = [word for word in words if not writers.check or _same(answers.get(writers.to_check(original, word).key))]
        for word in words:
            if word not in kept:
                account.leave("wordings", original.id, "does not ask the same, says the model", word)
        for word in kept[original.number :]:
            account.leave("wordings", original.id, "more than were wanted", word)
        if kept := kept[: original.number]:
            account.use("wordings", len(kept))
            about = {"id": original.id, "split": original.split, "question": original.question}
            rows.append({**about, "wordings": kept, "model": writers.model, "reply": reply.key})
    return rows


def write_file(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _written(original: Original, writers: Writers, answers: Answers, attempts: int) -> tuple[Request, list[str]] | None:
    """The first reply that is JSON of the right shape."""
    for attempt in range(attempts):
        request = writers.to_write(original, attempt)
        reply = answers.get(request.key)
        if reply is not None and not isinstance(words := read_list(reply["text"], "wordings"), Misread):
            return request, words
    return None


def _by_rule(
    originals: list[Original],
    taken: set[str],
    writers: Writers,
    answers: Answers,
    tries: int,
    declined: dict[str, str],
    account: Account,
    benchmarks: Benchmarks | None,
) -> Iterator[tuple[Original, Request, list[str]]]:
    """Of each question the wordings that no rule leaves out, with the request that they answer."""
    for original in originals:
        found = _written(original, writers, answers, tries)
        if found is None:
            why = next((declined[key] for n in range(tries) if (key := writers.to_write(original, n).key) in declined), "")
            account.leave("wordings", original.id, "the model declined" if why else "no usable reply", why, by_rule=False)
            continue
        kept = []
        for word in found[1]:
            if rule := fault(original, word, taken, benchmarks):
                account.leave("wordings", original.id, rule, word[:_LONGEST])
                continue
            kept.append(word)
            taken.add(normalise(word))
        if kept:
            yield original, found[0], kept


def fault(original: Original, wording: str, taken: set[str], benchmarks: Benchmarks | None = None) -> str | None:
    """Why a wording is not used; None for a good one. `taken`: normalised questions and wordings."""
    said = normalise(wording)
    if not said or len(wording) > _LONGEST:
        return "empty or too long"
    if said == normalise(original.question):
        return "the same words"
    if said in taken:
        return "asks another question of the set, or is there already"
    if speaks_of_the_text(wording):
        return "speaks of its text instead of its subject"
    if holds(said, normalise(original.answer)) and not holds(normalise(original.question), normalise(original.answer)):
        return "holds its own answer"
    if original.title and names(original.title, original.question) and not names(original.title, wording):
        return "does not name its subject"
    if not _keeps_names(original.question, wording):
        return "leaves out a name or a number"
    if benchmarks is not None and benchmarks.holds_question(wording, original.answer):
        return "shares a run of 13 words with a benchmark"
    return None


def _keeps_names(question: str, wording: str) -> bool:
    """Words with a digit all stand in the wording; of names, words with a capital after the first of all, at least half: a title may be shortened."""
    words = question.split()
    numbers = [word for word in words if any(character.isdigit() for character in word)]
    capitals = " ".join(word for word in words[1:] if word[:1].isupper())
    said = normalise(wording)
    return all(holds(said, normalise(number)) for number in numbers if normalise(number)) and (
        not normalise(capitals) or names(capitals, wording)
    )


def _same(reply: Reply | None) -> bool:
    """A check that was declined, or that says neither, counts as no."""
    return reply is not None and read_same(reply["text"])
