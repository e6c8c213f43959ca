"""Ways of writing about documents: each a file (data/build/asking/methods/*.yaml) that says what is asked, how replies lead to requests, and what is left.

A step is asked once a document; or over its train questions; or over what an earlier step has listed of it, one, two or three names at a time.
A reply of form `text` leaves a document, one of form `open` questions, one of form `list` names for later steps.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from console import UserError
from data.build.asking.prompts import Prompts, Template, said_of
from data.ground.strict import Strict

_METHODS = Path(__file__).parent / "methods"
REWRITES = "rewrites"
"""The method whose two steps --paraphrases and --rewrites set one by one."""
SIZES = {"each": 1, "pairs": 2, "triples": 3}
_MUST_HOLD = {"questions": "question", **dict.fromkeys(SIZES, "names")}


class Step(Template):
    """Names in braces in `user` beside those of a Template: {names} of `of`, {question} and {answer} over questions."""

    over: Literal["document", "questions", "each", "pairs", "triples"] = "document"
    of: str = ""
    """The step of form `list` whose names are taken one, two or three at a time."""
    texts: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How many a document (over questions: a question), times --texts. Pairs are drawn by the seed, none twice before all have had their turn."""
    styles: list[str] = []
    """What {style} stands for, in turn."""
    tokens: Annotated[int, Field(ge=16, le=32_768)] | None = None
    """The longest reply; empty: as long as its document, or as a list needs."""
    most: Annotated[int, Field(ge=1, le=100)] = 20
    """Entries of a list."""
    in_document: bool = False
    """Of a list only what stands in the document is used."""
    shortest: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of the document's length: a text below has lost something."""


class Method(Strict):
    about: str = ""
    source: str = ""
    """The paper."""
    steps: Annotated[dict[str, Step], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Part:
    """A step that is asked, and how often."""

    method: str
    way: str
    """The step's name: the form that its texts have."""
    step: Step
    times: float
    """Texts a document or question."""

    def digest(self) -> str:
        """Of the prompt."""
        return hashlib.sha256(f"{self.step.system}\0{self.step.user}".encode()).hexdigest()[:16]


def known_methods() -> list[str]:
    return sorted(path.stem for path in _METHODS.glob("*.yaml"))


def load_method(name: str) -> Method:
    """One of ours, or a file. Raises UserError with its path."""
    path = _METHODS / f"{name}.yaml" if name in known_methods() else Path(name)
    with said_of(path, f"--method {name}", known_methods()):
        method = Method.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    listed: set[str] = set()
    for way, step in method.steps.items():
        if why := _fault(step, listed):
            raise UserError(f"{path}: steps.{way}: {why}")
        listed |= {way} if step.form == "list" else set()
    if len(listed) == len(method.steps):
        raise UserError(f"{path}: steps: lists alone leave nothing to train; add a step of form text or open")
    return method


def _fault(step: Step, listed: set[str]) -> str | None:
    if step.form not in ("text", "open", "list"):
        return f"form: {step.form}: a step writes text, open (questions) or list"
    if "{text}" not in step.user:
        return "user: {text} is missing: the document would not be shown"
    if (word := _MUST_HOLD.get(step.over)) and f"{{{word}}}" not in step.user:
        return f"user: {{{word}}} is missing: what the text is to be about would not be said"
    if step.form == "list" and step.over != "document":
        return "over: a list is made of the document"
    if step.over in SIZES and step.of not in listed:
        return f"of: {step.of or 'missing'}: over {step.over} needs an earlier step of form list"
    if step.of and step.over not in SIZES:
        return f"of: is for {', '.join(SIZES)}"
    return None


def parts_of(names: Sequence[str], texts: int, paraphrases: int, rewrites: float, prompts: Prompts) -> tuple[Part, ...]:
    """What the options ask for, in their order. A method from a file is called like it. Raises UserError."""
    if REWRITES in names and (paraphrases or rewrites):
        raise UserError(f"--paraphrases and --rewrites: --method {REWRITES} sets both; give either")
    methods: dict[str, Method] = {}
    for name in dict.fromkeys(names):
        called = name if name in known_methods() else Path(name).stem
        if called in methods or (called != name and called in known_methods()):
            raise UserError(f"--method {name}: another method is called {called}; rename the file")
        methods[called] = load_method(name)
    alone = {"paraphrase": paraphrases, "rewrite": rewrites}
    if any(alone.values()):
        methods[REWRITES] = load_method(REWRITES)
    return tuple(
        Part(method, way, _own(step, way, prompts) if method == REWRITES else step, times)
        for method, found in methods.items()
        for way, step in found.steps.items()
        if (times := alone.get(way, 0.0) if method == REWRITES and any(alone.values()) else step.texts * texts)
    )


def _own(step: Step, way: str, prompts: Prompts) -> Step:
    """With what a file for --prompts has of its own."""
    template: Template | None = getattr(prompts, way)
    return step.model_copy(update={"system": template.system, "user": template.user}) if template else step


def chosen(names: Sequence[str], over: str, seed: int, document: str) -> list[tuple[str, ...]]:
    """One, two or three names at a time, each set once, in the order of a hash of the seed: fewer are part of more."""

    def rank(names: tuple[str, ...]) -> bytes:
        return hashlib.sha256("\0".join((str(seed), document, *names)).encode("utf-8", "surrogatepass")).digest()

    return sorted(combinations(names, SIZES[over]), key=rank)
