"""Settings of what a stage reads beside its own items: a teacher, an anchor, texts before questions (docs/teaching.md)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.ground.strict import Strict


class Teach(Strict):
    """A stage's items follow a model that has their document in view; the student reads them without it (arXiv 2412.14964; docs/teaching.md)."""

    on: Literal["questions", "documents", "everything"] = "questions"
    """Which items: train questions, or documents of train and test (the teacher reads such a document twice), or both."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of a taught token's loss that is the divergence from the teacher; the rest is cross entropy with the text."""
    model: str | None = None
    """One of the experiment's `models` as the teacher; empty: the stage's own start."""


class Before(Strict):
    """What stands before a stage's questions, by share, drawn anew each time one is trained; the rest stand alone (docs/teaching.md).

    It is read and not learnt, and the answer to be learnt is always the right one. A model that was never asked so cannot be a teacher.
    """

    document: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Its own document."""
    retrieved: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The document of its split that TF-IDF finds first for its words, its own or not."""
    distracting: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Another document of its split, drawn at random."""
    conflicting: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Its own document, in which the answer of another question stands in the place of the right one."""

    @model_validator(mode="after")
    def is_a_share(self) -> "Before":
        if not 0 < sum(self.shares()) <= 1 + 1e-9:
            raise ValueError("the shares of what stands before questions must be more than 0 together, and at most 1")
        return self

    def shares(self) -> tuple[float, float, float, float]:
        return self.document, self.retrieved, self.distracting, self.conflicting


class Anchor(Strict):
    """Replay items stay near what the stage's start says to them: KL to one's former self (arXiv 2604.15574; docs/teaching.md)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of the divergence from the start."""
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    """Weight of their usual loss beside it; 0: what the texts say does not matter, only what the start said to them."""
