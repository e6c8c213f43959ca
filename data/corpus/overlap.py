"""What the exam and the training have in common: found by normalised text, and dealt with by the declared policy.

Trained are the splits train and replay; the exam is the split test. The new documents of the exam are meant to be
trained; that one of them *also* stands among the train documents is what is reported.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

from console import UserError
from data.ground.words import normalise
from data.records import ChoiceQuestion, Document, OverlapReport, Question, Record, Split
from data.sources.raw_rows import excerpt

Policy = Literal["refuse", "drop_from_train", "drop_from_exam", "allow"]
_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Item:
    """A record in its split, with its place for people."""

    where: str
    split: Split
    record: Record


@dataclass(frozen=True, slots=True)
class _Pair:
    exam: Item
    trained: list[Item]


def apply_policy(items: Iterable[Item], policy: Policy) -> tuple[OverlapReport, dict[int, str]]:
    """The report, and why each item that has to go goes, by its position in `items`.

    `drop_from_train` and `drop_from_exam` take a document's questions with it: they would be trained or asked
    without their document, and they are about the one that was found twice.
    Raises UserError under the policy `refuse` if there is any overlap: its size, the first with both places, the remedy.
    """
    items = list(items)
    documents = _pairs(items, Document, lambda r: normalise(r.text) if isinstance(r, Document) else None)
    questions = _pairs(items, (Question, ChoiceQuestion), lambda r: None if isinstance(r, Document) else normalise(r.question))
    if policy == "refuse" and (documents or questions):
        raise UserError(_refused(items, documents, questions))
    lost = _lost(items, documents, questions, policy)
    report = OverlapReport(
        policy=policy,
        question_ids=tuple(pair.exam.record.id for pair in questions),
        same_answer=sum(_same_answer(pair) for pair in questions),
        document_ids=tuple(pair.exam.record.id for pair in documents),
        dropped=dict(Counter(kind_of(items[position]) for position in lost)),
        examples=tuple(map(_example, [*questions, *documents][:_NUM_EXAMPLES])),
    )
    return report, lost


def kind_of(item: Item) -> str:
    """Split and what it is: train_documents, test_choices, …"""
    holds = {Document: "documents", Question: "questions", ChoiceQuestion: "choices"}[type(item.record)]
    return f"{item.split}_{holds}"


def _pairs(items: list[Item], kinds: type | tuple[type, ...], key_of: Callable[[Record], Hashable]) -> list[_Pair]:
    trained: dict[Hashable, list[Item]] = {}
    for item in items:
        # choices are examined and never trained, whatever their split
        if item.split != "test" and isinstance(item.record, kinds) and not isinstance(item.record, ChoiceQuestion):
            trained.setdefault(key_of(item.record), []).append(item)
    exam = (item for item in items if item.split == "test" and isinstance(item.record, kinds))
    return [_Pair(item, trained[key]) for item in exam if (key := key_of(item.record)) in trained]


def _lost(items: list[Item], documents: list[_Pair], questions: list[_Pair], policy: Policy) -> dict[int, str]:
    if policy not in ("drop_from_train", "drop_from_exam"):
        return {}
    from_train = policy == "drop_from_train"
    reasons: dict[int, str] = {}  # by id() of the item
    for pair in [*documents, *questions]:
        if from_train:
            reasons |= {id(item): f"also stands in the exam ({pair.exam.where})" for item in pair.trained}
        else:
            reasons[id(pair.exam)] = f"also stands in training ({pair.trained[0].where})"
    gone = {(item.split, item.record.id) for item in items if id(item) in reasons and isinstance(item.record, Document)}
    sides = {split for split, _ in gone}
    lost = {}
    for position, item in enumerate(items):
        if id(item) in reasons:
            lost[position] = reasons[id(item)]
        elif not isinstance(item.record, Document) and item.split in sides and any((split, item.record.doc_id) in gone for split in sides):
            lost[position] = f"its document also stands in {'the exam' if from_train else 'training'}"
    return lost


def _same_answer(pair: _Pair) -> bool:
    exam = pair.exam.record
    golds = (exam.choices[exam.answer_index],) if isinstance(exam, ChoiceQuestion) else exam.answers if isinstance(exam, Question) else ()
    accepted = {normalise(gold) for gold in golds}
    return any(isinstance(t.record, Question) and normalise(t.record.answers[0]) in accepted for t in pair.trained)


def _example(pair: _Pair) -> str:
    record = pair.exam.record
    text = record.text if isinstance(record, Document) else record.question
    return f"{pair.exam.where} = {pair.trained[0].where}: {excerpt(text)}"


def _refused(items: list[Item], documents: list[_Pair], questions: list[_Pair]) -> str:
    num = Counter("documents" if isinstance(item.record, Document) else "questions" for item in items if item.split == "test")
    parts = [f"{len(pairs)} of {num[what]} exam {what}" for what, pairs in (("questions", questions), ("documents", documents)) if pairs]
    return (
        f"{' and '.join(parts)} also stand in training; the first: {_example((questions or documents)[0])}; "
        "decide with data.overlap=drop_from_train|drop_from_exam|allow"
    )
