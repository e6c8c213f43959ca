"""What a model is asked to write beside the questions: documents in other words and forms, and more questions (data/build/asking/methods.py).

One wording is memorised, several are learnt (Physics of Language Models 3.1, arXiv 2309.14316); sources of the Pre-Instruction-Tuning papers add documents that are
centred on a question, one for each (arXiv 2603.23562). Exam questions steer nothing here: what is written over questions is written over
those of the train split alone, and a method whose own words hold one of the exam's is refused.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from console import UserError
from data.build.asking.exchange import Answers, Reply, Request
from data.build.asking.methods import SIZES, Part, chosen
from data.build.asking.prompts import Asked, Misread, read_answer, read_list, read_text
from data.build.making.figures import Exam
from data.build.making.filters import Source, supported
from data.build.making.near import Benchmarks
from data.build.making.questions import NOT_KNOWN_YET, Asking, Building, Made, split_of
from data.ground.words import normalise
from data.records import Document

_LONGEST_NAME = 300
EMPTY = "names nothing that can be used"
Written = str | list[str] | list[Asked]
"""A text, names, or questions: what a reply to a step of form text, list or open holds."""


@dataclass(frozen=True, slots=True)
class Task:
    part: Part
    number: int
    document: Document
    question: dict[str, Any] | None = None
    names: tuple[str, ...] = ()

    def request(self, asking: Asking, attempt: int) -> Request:
        step, values = self.part.step, {"names": "; ".join(self.names)}
        if step.styles:
            values["style"] = step.styles[self.number % len(step.styles)]
        if self.question is not None:
            values |= {"question": self.question["question"], "answer": self.question["answers"][0]}
        # Every text is drawn with a seed of its own: the sixth paraphrase has the first one's style again.
        return asking.step_request(self.document, step, values, self.number, attempt)


def to_write(build: Building, made: Made | None, attempt: int, lists: bool) -> Iterator[Request]:
    """As data.build.making.questions.to_ask. lists: those that the other requests follow from. made: None before there are questions; then as if
    every document had as many as may be asked, and every list that is not there yet as many names as are wanted."""
    for task in tasks(build, made):
        if (task.part.step.form == "list") == lists and (attempt == 0 or usable(task, build.asking, build.answers, attempt) is None):
            yield task.request(build.asking, attempt)


def tasks(build: Building, made: Made | None) -> Iterator[Task]:
    """By document, and of each in the order of the steps."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in made.rows["train"] if made is not None else ():
        asked.setdefault(row["doc_id"], []).append(row)
    unknown = [{"id": str(n), "question": NOT_KNOWN_YET * 4, "answers": [NOT_KNOWN_YET]} for n in range(build.asking.most)]
    for document in build.reading.documents():
        trained = split_of(document, build.splits) == "train"
        questions = (asked.get(document.id, ()) if made is not None else unknown) if trained else ()
        for part in build.asking.parts:
            yield from _of_part(part, document, questions, build.asking, build.answers, guess=made is None)


def _of_part(
    part: Part, document: Document, questions: Sequence[dict[str, Any]], asking: Asking, answers: Answers, guess: bool
) -> Iterator[Task]:
    if part.step.over == "questions":
        for row in questions:
            for number in range(_times(part.times, f"{document.id} {row['id']}")):
                yield Task(part, number, document, row)
    elif part.step.form == "list":
        yield Task(part, 0, document)
    elif part.step.over in SIZES:
        for number, names in islice(_turns(list_task(part, document, asking), part, asking, answers, guess), int(part.times)):
            yield Task(part, number, document, names=names)
    else:
        yield from (Task(part, number, document) for number in range(int(part.times)))


def list_task(part: Part, document: Document, asking: Asking) -> Task:
    """That a part's names come from."""
    return Task(next(p for p in asking.parts if (p.method, p.way) == (part.method, part.step.of)), 0, document)


def _turns(source: Task, part: Part, asking: Asking, answers: Answers, guess: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(round, names): all sets of them once, then all again with another seed; nothing where the list is too short for one."""
    found = usable(source, asking, answers, asking.tries)
    size = SIZES[part.step.over]
    if found is None and guess:
        yield from ((0, (NOT_KNOWN_YET,) * size) for _ in range(int(part.times)))
        return
    sets = chosen(kept_names(source, found[2] if found else [])[0], part.step.over, asking.seed, source.document.id)
    yield from ((number, names) for number in range(int(part.times)) for names in sets)


def kept_names(task: Task, names: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of a list that are used, and (reason, name) of the others."""
    kept: dict[str, str] = {}
    left: list[tuple[str, str]] = []
    source = Source.of(task.document)
    for name in names:
        said = normalise(name)
        if not said or len(name) > _LONGEST_NAME:
            left.append(("empty or too long", name[:_LONGEST_NAME]))
        elif said in kept:
            left.append(("listed twice", name))
        elif task.part.step.in_document and not supported(name, source):
            left.append(("does not stand in the document", name))
        elif len(kept) == task.part.step.most:
            left.append(("more than were asked for", name))
        else:
            kept[said] = name
    return list(kept.values()), left


def _times(times: float, name: str) -> int:
    """1.5: once, and by a hash of the name for half of them twice."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    return int(times) + (share < times % 1)


def usable(task: Task, asking: Asking, answers: Answers, attempts: int) -> tuple[Request, Reply, Written] | None:
    """The first reply that is whole and JSON of the right shape, with what it holds."""
    for attempt in range(attempts):
        request = task.request(asking, attempt)
        reply = answers.get(request.key)
        if reply is not None and reply["finish"] != "length" and not isinstance(found := _read(task, reply), Misread):
            return request, reply, found
    return None


def _read(task: Task, reply: Reply) -> Written | Misread:
    form = task.part.step.form
    if form == "list":
        return read_list(reply["text"], "list") or Misread(EMPTY)  # a weak model's easiest reply: it is asked again
    if form == "open":
        asked = [one for one in read_answer(reply["text"], form) if isinstance(one, Asked)]
        return asked or Misread("no list of questions")
    return read_text(reply["text"])


def examined(made: Made) -> Exam:
    """The questions of the exam, and of validation, which curricula are chosen on."""
    return Exam(row["question"] for split in ("test", "validation") for row in made.rows[split])  # type: ignore[index]


def refuse_exam(asking: Asking, exam: Exam, benchmarks: Benchmarks | None) -> None:
    """UserError for a method whose own words hold a question of the exam: nothing that is examined may steer a writer."""
    for part in asking.parts:
        for text in (part.step.system, part.step.user, *part.step.styles):
            held = exam.held(text)
            if held or (benchmarks is not None and benchmarks.holds(text)):
                which = f"a question of the exam ({held[0]!r})" if held else "a question of a benchmark"
                raise UserError(f"--method {part.method}: the prompt of {part.way} holds {which}; take it out")
