"""How records become text (PIT, arXiv 2402.12847): the only place that knows the wording, but for the model's own (data/wording/chat.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data.config import Stage
from data.records import Document, Question


@dataclass(frozen=True)
class Wording:
    """What of a stage changes the text of its items: one token store for each."""

    template: Literal["pit", "alpaca", "chat"] = "pit"
    prefix: Literal["none", "title", "url"] = "none"
    sentences: bool = False
    """Where sentences begin is kept too."""
    asked: int = field(default=1, repr=False)  # stores are known by the repr: those of one wording are what they were
    """In so many wordings questions are kept."""
    passages: bool = field(default=False, repr=False)
    """Documents as they stand before a question: a blank line behind them, nothing in front."""

    @property
    def name(self) -> str:
        """For a folder's name: "alpaca-title"."""
        sentences, asked = "-sentences" if self.sentences else "", f"-{self.asked}" if self.asked > 1 else ""
        return f"{self.template}-{self.prefix}{sentences}{asked}{'-passages' if self.passages else ''}"


PLAIN = Wording()
PASSAGES = Wording(passages=True)


def wording_of(stage: Stage) -> Wording:
    return Wording(stage.template, stage.prefix, stage.sentence_shuffle, stage.wordings)


def exam_template(stages: Sequence[Stage], before: str = "pit") -> str:
    """How the exam words its questions to a model that went through these stages: as the last one that trained questions did; else as `before`."""
    return next((stage.template for stage in reversed(stages) if stage.trains_questions()), before)


def document_text(document: Document) -> str:
    return document.text


def document_prefix(document: Document, wording: Wording) -> str:
    """The line before the text, with its line break; empty without a title or URL."""
    value = {"none": None, "title": document.title, "url": document.url}[wording.prefix]
    return f"{value}\n" if value else ""


def question_prompt(question: str, template: str = "pit") -> str:
    """Ends without a space: the space belongs to the answer's first token, in training and in the exam.

    `alpaca`: the prompt of Stanford Alpaca for an instruction without input, and the line break: in many tokenizers (Llama 3's, Qwen's) it is one token with the colon.
    Training learns that line break too (`learnt_from`).
    """
    assert template != "chat", "the tokenizer words it: data.tokens.Encoder.prompt_text"
    if template == "alpaca":
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{question}\n\n### Response:\n"
        )
    return f"Question: {question} Answer:"


def learnt_from(question: str, template: str = "pit") -> int:
    """The character of `question_text` at which the loss begins."""
    return len(question_prompt(question, template).rstrip("\n"))


def question_text(question: Question, template: str = "pit") -> str:
    between = "" if template == "alpaca" else " "
    return f"{question_prompt(question.question, template)}{between}{question.answers[0]}"
