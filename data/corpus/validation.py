"""The exam questions in two parts by document: one to choose settings by (a search), one that is asked once at the end."""

import hashlib
from dataclasses import replace

from console import UserError
from data.records import ChoiceQuestion, Corpus, Question


def split_validation(corpus: Corpus, share: float, seed: int) -> tuple[Corpus, Corpus]:
    """(for choosing, for the test): the corpus twice, with another part of the test questions and choices in each; documents stay in both.

    Whole documents go to one side, chosen by a hash of seed and id: a question without one stands for itself. All documents are
    trained either way, so both parts ask about documents that the model has read. UserError where a side would be empty.
    """
    test = corpus.part("test")
    asked: list[Question | ChoiceQuestion] = [*test.questions, *test.choices]
    owners = sorted({question.doc_id or question.id for question in asked})
    count = round(share * len(owners))
    if not 0 < count < len(owners):
        raise UserError(
            f"exam.validation_share: {share:g} of {len(owners)} documents with test questions leaves one side empty; "
            "give another share, or more test questions"
        )
    ranked = sorted(owners, key=lambda owner: hashlib.sha256(f"validation {seed}:{owner}".encode()).digest())
    chosen = set(ranked[:count])

    def part_of(inside: bool) -> Corpus:
        kept = replace(
            test,
            questions=[q for q in test.questions if ((q.doc_id or q.id) in chosen) == inside],
            choices=[q for q in test.choices if ((q.doc_id or q.id) in chosen) == inside],
        )
        return replace(corpus, parts={**corpus.parts, "test": kept})

    return part_of(True), part_of(False)


def without_validation(corpus: Corpus, share: float, seed: int) -> Corpus:
    """What is left for the test; everything where nothing is set aside."""
    return split_validation(corpus, share, seed)[1] if share else corpus
