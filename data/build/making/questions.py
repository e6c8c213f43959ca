"""From replies to questions: read, filtered, and every one accounted for. Exam first, so that a question asked twice is not trained."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.build.asking.exchange import Answers, Reply, Request
from data.build.asking.methods import Part, Step
from data.build.asking.prompts import LEVELS, Asked, Form, Misread, Prompts, Template, read_answer, schema, without_thoughts
from data.build.making.account import Account
from data.build.making.filters import Source, Unique, fault, right_answer
from data.build.making.near import Benchmarks
from data.build.making.reading import Reading
from data.build.making.splits import SplitName
from data.ground.words import holds, normalise
from data.records import Document
from data.sources.raw_rows import excerpt

ORDER: tuple[SplitName, ...] = ("test", "validation", "train")
_TOKENS_A_QUESTION = 160
"""Room for one question as JSON, the longest texts of the schema at four characters a token; a reply that needs more is cut off,
counted and asked again."""
_TOKENS_AN_ENTRY = 24
"""Of a list of names."""
_CHECK_TOKENS = 48
NOT_KNOWN_YET = "?" * 20
"""In an estimate, for a question's answer or a name that a reply will give; four times for a question."""
_RETRY_TEMPERATURE = 0.7
"""A greedy model that went wrong would go wrong again."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked for; what a reply depends on."""

    prompts: Prompts
    most: int
    model: str
    seed: int
    bounded: bool
    """Lengths in the schema: data.build.asking.prompts.schema."""
    characters: int
    """Of the longest document."""
    checker: str | None = None
    """Who answers the questions when they are checked; None: who wrote them."""
    parts: tuple[Part, ...] = ()
    """What is written beside the questions."""
    tries: int = 2
    """Times something is asked until the reply is usable."""

    def template(self, split: SplitName) -> Template:
        return self.prompts.train if split == "train" else self.prompts.exam

    def allowance(self, form: Form) -> int:
        """Most tokens of a reply."""
        return _TOKENS_A_QUESTION * self.most * (2 if form == "choices" else 1)

    def longest_answer(self) -> int:
        questions = max(self.allowance(self.prompts.train.form), self.allowance(self.prompts.exam.form))
        return max([questions, self._text_allowance(self.characters), *(part.step.tokens or 0 for part in self.parts)])

    def _text_allowance(self, num_bytes: int) -> int:
        """A rewrite as long as its document, in a tokenizer that makes many tokens of it."""
        return num_bytes // 3 + _TOKENS_A_QUESTION

    def request(self, document: Document, split: SplitName, attempt: int = 0) -> Request:
        template = self.template(split)
        return Request(
            subject=document.id,
            messages=template.messages(document, {"levels": ", ".join(LEVELS), "most": str(self.most)}),
            schema=schema(template.form, self.most, self.bounded),
            max_tokens=self.allowance(template.form),
            seed=self.seed + attempt,
            model=self.model,
            temperature=_RETRY_TEMPERATURE if attempt else 0.0,
        )

    def step_request(self, document: Document, step: Step, values: Mapping[str, str], number: int, attempt: int) -> Request:
        """What a step asks of a document. number: which of several that are asked for alike."""
        most = step.most if step.form == "list" else self.most
        own = {"list": _TOKENS_AN_ENTRY * (step.most + 1), "open": self.allowance("open")}.get(step.form)
        length = min(len(document.text.encode("utf-8", "replace")), self.characters)
        return Request(
            subject=document.id,
            messages=step.messages(document, {"levels": ", ".join(LEVELS), "most": str(most), **values}),
            schema=schema(step.form, most, self.bounded),
            max_tokens=step.tokens or own or self._text_allowance(length),
            seed=self.seed + 1000 * number + attempt,
            model=self.model,
            temperature=_RETRY_TEMPERATURE if step.form != "list" or attempt else 0.0,  # greedy, a model copies
        )

    def check(self, question: dict[str, Any], document: Document | None) -> Request:
        """The question itself, after its document or alone, for the checker."""
        user = f"{document.text}\n\n{question['question']}" if document else question["question"]
        system = "Answer the question with a short phrase and nothing else."
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        return Request(question["id"], messages, None, _CHECK_TOKENS, self.seed, self.checker or self.model)


@dataclass(frozen=True)
class Building:
    """What every part of a build works with: what is read, how it is asked about, what has come back and what is counted."""

    reading: Reading
    splits: dict[str, SplitName]
    """By page, so that all chunks of one lie in one."""
    asking: Asking
    answers: Answers
    account: Account
    benchmarks: Benchmarks | None


def to_ask(build: Building, attempt: int) -> Iterator[Request]:
    """The requests of one attempt: of the first all, of a later one those whose every earlier reply was no good."""
    for document in build.reading.documents():
        split = split_of(document, build.splits)
        if attempt == 0 or usable_reply(document, split, build.asking, build.answers, attempt) is None:
            yield build.asking.request(document, split, attempt)


def usable_reply(document: Document, split: SplitName, asking: Asking, answers: Answers, attempts: int) -> tuple[Request, Reply] | None:
    """The first reply that is JSON of the right shape."""
    for attempt in range(attempts):
        request = asking.request(document, split, attempt)
        reply = answers.get(request.key)
        if reply is not None and any(isinstance(one, Asked) for one in read_answer(reply["text"], asking.template(split).form)):
            return request, reply
    return None


def split_of(document: Document, splits: dict[str, SplitName]) -> SplitName:
    assert document.meta is not None
    return splits[document.meta["page"]]


@dataclass
class Made:
    """Questions by split, as rows of our own format with where each comes from."""

    rows: dict[SplitName, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in ORDER})
    prompt_tokens: int = 0
    answer_tokens: int = 0


def collect(build: Building, declined: dict[str, str]) -> Made:
    """Every question of every reply: among the rows, or left out with its reason. settle() counts the rows when all checks are done."""
    asking, answers, account = build.asking, build.answers, build.account
    made, unique = Made(), Unique(build.benchmarks)
    for wanted in ORDER:
        for document in build.reading.documents():
            if split_of(document, build.splits) != wanted:
                continue
            found = usable_reply(document, wanted, asking, answers, asking.tries)
            if found is None:
                account.leave("answers", document.id, *_why_none(document, wanted, asking, answers, declined), by_rule=False)
                continue
            account.use("answers")
            made.prompt_tokens += found[1]["prompt_tokens"]
            made.answer_tokens += found[1]["answer_tokens"]
            form, digest = asking.template(wanted).form, asking.prompts.digest()
            made.rows[wanted] += rows_of(document, wanted, form, *found, account, unique, digest)
    return made


def rows_of(
    document: Document,
    split: SplitName,
    form: Form,
    request: Request,
    reply: Reply,
    account: Account,
    unique: Unique,
    prompts: str,
) -> Iterator[dict[str, Any]]:
    """The questions of a reply that no rule leaves out. prompts: a digest of what was asked."""
    source = Source.of(document)
    for asked in read_answer(reply["text"], form):
        if isinstance(asked, Misread):
            account.leave("questions", document.id, asked.reason, asked.excerpt, by_rule=False)
            continue
        question, answer = asked.question.strip(), right_answer(asked)
        id = f"{document.id}?{hashlib.sha256(question.encode()).hexdigest()[:8]}"
        if why := fault(asked, source) or unique.fault(id, split, question, answer):
            account.leave("questions", document.id, why[0], why[1][:200])
            continue
        row: dict[str, Any] = {"id": id, "doc_id": document.id, "question": question, "answers": [answer]}
        if asked.level:
            row["level"] = f"{LEVELS.index(asked.level) + 1} {asked.level}"  # so that order: by_level goes up the taxonomy
        if asked.choices:
            row |= {"choices": [choice.strip() for choice in asked.choices], "answer_index": "ABCD".index(asked.answer)}
        yield row | {"model": request.model, "seed": request.seed, "prompts": prompts, "reply": request.key}


def _why_none(document: Document, split: SplitName, asking: Asking, answers: Answers, declined: dict[str, str]) -> tuple[str, str]:
    for attempt in range(asking.tries):
        request = asking.request(document, split, attempt)
        if request.key in declined:
            return "the model declined", declined[request.key]
        reply = answers.get(request.key)
        if reply is not None and reply["finish"] == "length":
            return "the reply was cut off", f"{request.max_tokens} tokens: {excerpt(reply['text'], 120)}"
        if reply is not None and attempt == asking.tries - 1:
            first = next(read_answer(reply["text"], asking.template(split).form))
            return (first.reason, first.excerpt) if isinstance(first, Misread) else ("no usable reply", "")
    return "not asked", ""


def check_requests(build: Building, made: Made, with_document: bool) -> Iterator[Request]:
    """Every question once more, to be answered: alone, or after its document."""
    by_document: dict[str, list[dict[str, Any]]] = {}
    for row in all_rows(made):
        by_document.setdefault(row["doc_id"], []).append(row)
    for document in build.reading.documents():
        for row in by_document.get(document.id, []):
            yield build.asking.check(row, document if with_document else None)


def drop_checked(build: Building, made: Made, with_document: bool) -> None:
    """Alone: leaves out what the model answers without the document; after it: what it cannot answer even then.

    A check that was declined counts as not answered.
    """
    requests = check_requests(build, made, with_document)
    right = {request.subject: build.answers.get(request.key) for request in requests}  # one short reply a question
    for split, rows in made.rows.items():
        kept = []
        for row in rows:
            reply = right[row["id"]]
            if answered_right(reply, row) == with_document:
                kept.append(row)
                continue
            reason = "not answered with the document at hand" if with_document else "answered without the document"
            build.account.leave("questions", row["doc_id"], reason, f"{row['question']} {reply['text'][:80] if reply else ''}")
        made.rows[split] = kept


def all_rows(made: Made) -> Iterable[dict[str, Any]]:
    return (row for split in ORDER for row in made.rows[split])


def answered_right(reply: Reply | None, row: dict[str, Any]) -> bool:
    """Whether the reply is the answer, or says it among a few other words."""
    if reply is None:
        return False
    said = normalise(without_thoughts(reply["text"]))
    return any(holds(said, normalise(answer)) for answer in row["answers"])


def settle(made: Made, account: Account) -> dict[str, dict[str, int]]:
    """Counts what is left as used; by split, how many questions of each level."""
    account.use("questions", sum(len(rows) for rows in made.rows.values()))
    return {split: dict(sorted(Counter(row.get("level", "none") for row in made.rows[split]).items())) for split in ORDER}
