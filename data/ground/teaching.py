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
    """One of the experiment's `models` as the teacher, or `base`: what its base stages have left; empty: the stage's own start."""
    answers: Literal["gold", "own"] = "gold"
    """What is answered: as the file says, or as the stage's start itself does without the document (on-policy, arXiv 2601.19897), drawn once before the first step."""
    answer_tokens: Annotated[int, Field(ge=1)] = 32
    """Most tokens of an own answer with its end; rows keep room for so many."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Own answers are drawn at; 0: the likeliest token each time."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """The stage so many times over, each a stage of its own: teacher and own answers are then those of the round before."""

    @model_validator(mode="after")
    def makes_sense(self) -> "Teach":
        if self.answers == "own" and self.on != "questions":
            raise ValueError("answers: own is of questions; a document is no answer (on: questions)")
        if self.answers == "own" and self.share != 1:
            raise ValueError("answers: own may be wrong, so nothing of their loss is cross entropy with them: give share: 1")
        if self.rounds > 1 and self.model and self.answers == "gold":
            raise ValueError(
                f"rounds renew a teacher that is the stage's own start, and {self.model} stays what it is; give answers: own, or more epochs"
            )
        if self.answers == "gold":
            for name in ("answer_tokens", "temperature"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} acts on the model's own answers; give answers: own")
        return self


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

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the divergence from the start; 0: what the start said is not asked, and `ewc` alone holds."""
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    """Weight of their usual loss beside it; 0: what the texts say does not matter, only what the start said to them."""
    ewc: Annotated[float, Field(ge=0)] = 0.0
    """Of half the squared distance of every weight from the start, by how much it matters to these items (elastic weight consolidation, arXiv 1612.00796; trainer/teaching/ewc.py)."""

    @model_validator(mode="after")
    def holds_something(self) -> "Anchor":
        if not self.weight and (not self.ewc or self.cross_entropy != 1):
            raise ValueError("weight: 0 leaves ewc alone, which needs a value, and the items' usual loss (cross_entropy: 1)")
        return self
