"""How records become text (PIT, arXiv 2402.12847): the only place that knows the wording."""

from data.records import Document, Question


def document_text(document: Document) -> str:
    return document.text


def question_prompt(question: str) -> str:
    """Ends without a space: the space belongs to the answer's first token, in training and in the exam."""
    return f"Question: {question} Answer:"


def question_text(question: Question) -> str:
    return f"{question_prompt(question.question)} {question.answers[0]}"
