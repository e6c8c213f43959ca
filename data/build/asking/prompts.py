"""What the generator is asked: templates (data/build/asking/prompts/*.yaml), the JSON schema of the answer, and reading the answer."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from console import UserError
from data.ground.strict import Strict
from data.ground.strict_json import JsonFault, StrictDecoder, decode_line
from data.records import Document
from data.sources.raw_rows import excerpt

Form = Literal["open", "choices", "text", "wordings", "same", "list"]
LEVELS = ("remember", "understand", "apply", "analyze", "evaluate", "create")
"""Bloom's taxonomy as revised by Anderson and Krathwohl (2001), lowest first."""
MOST = 5
"""Questions a document: the PIT paper has 4.93, Perpetual 3 to 5."""
_LONGEST_QUESTION, _LONGEST_ANSWER = 300, 200
_TEMPLATES = Path(__file__).parent / "prompts"
_REWRITES = Path(__file__).parent / "methods" / "rewrites.yaml"
UNTITLED = "the thing it speaks of (by its name)"
"""What stands for {topic} where a document has no title."""
_BEGINNING = 120
"""Characters of a reply that was no good, for people to see what it was."""
_CONTROLS = re.compile(r"[\x00-\x1f]")
_THOUGHTS = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>|\A\s*<(?:think|thinking|thought|reasoning)>(?!.*</).*\Z", re.DOTALL)
_FENCED = re.compile(r"```\w*\s(.*?)```", re.DOTALL)
_MOST_BRACES = 200
_NAMES = re.compile(r"\{([a-z]+)\}")


class Template(Strict):
    """Names in braces in `user` are filled in: {topic} and {text}; of questions {levels} and {most}; of paraphrases {style}; of rewrites
    {question} and {answer}."""

    form: Form
    system: str
    user: str

    def messages(self, document: Document, values: Mapping[str, str]) -> list[dict[str, str]]:
        """values: what {levels}, {most}, {style}, {question} and {answer} stand for, where the template has them."""
        return self.filled({**values, "topic": _topic(document), "text": document.text})

    def filled(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Names all at once: a document may hold them in braces too, and {"questions": …} is no name."""
        user = _NAMES.sub(lambda found: values.get(found[1], found[0]), self.user)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def _topic(document: Document) -> str:
    """Of code its path, by which code speaks of itself."""
    about = document.meta or {}
    return document.title or (str(about["page"]) if about.get("format") == "code" else UNTITLED)


class Prompts(Strict):
    about: str = ""
    train: Template
    exam: Template
    """Of documents whose questions are asked and not trained."""
    paraphrase: Template | None = None
    rewrite: Template | None = None
    """Of these two ours (data/build/asking/methods/rewrites.yaml) where a file has none."""

    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


@contextlib.contextmanager
def said_of(path: Path, option: str, known: list[str]) -> Iterator[None]:
    """Raises UserError where a file of prompts cannot be read, is not YAML or does not fit; `option`: how it was asked for."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}: {error.strerror}; give a file or one of {', '.join(known)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None


def load_prompts(name: str) -> Prompts:
    """A template of ours ("pit", "perpetual") or a file. Raises UserError with its path."""
    path = _TEMPLATES / f"{name}.yaml" if name in known_prompts() else Path(name)
    with said_of(path, f"--prompts {name}", known_prompts()):
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        steps = yaml.safe_load(_REWRITES.read_text(encoding="utf-8"))["steps"]
        ours = {way: {field: step[field] for field in Template.model_fields} for way, step in steps.items()}
        prompts = Prompts.model_validate({**ours, **own} if isinstance(own, dict) else own)
    for use in ("train", "exam", "paraphrase", "rewrite"):
        template = getattr(prompts, use)
        if "{text}" not in template.user:
            raise UserError(f"{path}: {use}.user: {{text}} is missing: the document would not be shown")
        if template.form not in (("text",) if use in ("paraphrase", "rewrite") else ("open", "choices")):
            raise UserError(f"{path}: {use}.form: {template.form}: questions are open or choices, paraphrase and rewrite are text")
    if prompts.train.form != "open":
        raise UserError(f"{path}: train.form: multiple choice is examined, never trained; use open")
    return prompts


def known_prompts() -> list[str]:
    return sorted(path.stem for path in _TEMPLATES.glob("*.yaml"))


def schema(form: Form, most: int, bounded: bool) -> dict[str, Any]:
    """The answer as JSON schema. bounded: with longest texts, which in-process decoding enforces and some services refuse."""

    def text(longest: int) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "maxLength": longest} if bounded else {"type": "string"}

    if form == "same":
        return _object({"same": {"type": "string", "enum": ["yes", "no"]}})
    if form in ("wordings", "list"):
        return _object({form: {"type": "array", "items": text(_LONGEST_QUESTION), "minItems": 1, "maxItems": most}})
    if form == "text":
        return _object({"text": {"type": "string", "minLength": 1}})
    properties: dict[str, Any] = {"question": text(_LONGEST_QUESTION)}
    if form == "choices":
        properties["choices"] = {"type": "array", "items": text(_LONGEST_ANSWER), "minItems": 4, "maxItems": 4}
        properties["answer"] = {"type": "string", "enum": list("ABCD")}
    else:
        properties["answer"] = text(_LONGEST_ANSWER)
    properties["level"] = {"type": "string", "enum": list(LEVELS)}
    one = _object(properties)
    return _object({"questions": {"type": "array", "items": one, "minItems": 1, "maxItems": most}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


class Asked(Strict):
    """One question as the model wrote it."""

    question: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)]
    choices: list[str] = []
    level: Literal["remember", "understand", "apply", "analyze", "evaluate", "create"] | None = None


@dataclass(frozen=True, slots=True)
class Misread:
    """Why an answer, or one question in it, is not what was asked for."""

    reason: str
    excerpt: str = ""


def read_answer(text: str, form: Form) -> Iterator[Asked | Misread]:
    """The questions of one answer; one Misread where it is no JSON of the right shape."""
    try:
        value = _json_in(text, "questions")
    except JsonFault as fault:
        yield Misread("not JSON", f"{fault.reason}: {excerpt(text, _BEGINNING)}")
        return
    questions = value.get("questions", [value] if "question" in value else None) if isinstance(value, dict) else value
    if not isinstance(questions, list) or not questions:
        yield Misread("no list of questions", excerpt(text, _BEGINNING))
        return
    for one in questions:
        yield _asked(one, form)


def read_text(text: str) -> str | Misread:
    """The text of one answer to a template of form `text`."""
    try:
        value = _json_in(text, "text")
    except JsonFault as fault:
        return Misread("not JSON", f"{fault.reason}: {excerpt(text, _BEGINNING)}")
    said = value.get("text") if isinstance(value, dict) else None
    return said.strip() if isinstance(said, str) and said.strip() else Misread("no text", excerpt(text, _BEGINNING))


def read_list(text: str, form: Literal["wordings", "list"]) -> list[str] | Misread:
    """The entries of one answer to a template of that form, each on one line. A list of names may be empty (where a service
    does not keep to the schema), one of wordings not."""
    try:
        value = _json_in(text, form)
    except JsonFault as fault:
        return Misread("not JSON", f"{fault.reason}: {excerpt(text, _BEGINNING)}")
    words = value.get(form) if isinstance(value, dict) else value
    if not isinstance(words, list) or not (words or form == "list") or not all(isinstance(word, str) for word in words):
        return Misread("no list of wordings" if form == "wordings" else "no list", excerpt(text, _BEGINNING))
    return [" ".join(word.split()) for word in words]


def read_same(text: str) -> bool:
    """Whether an answer to a template of form `same` says yes, as JSON or as its first word."""
    try:
        value = _json_in(text, "same")
        said = value.get("same") if isinstance(value, dict) else value
    except JsonFault:
        said = without_thoughts(text)
    return isinstance(said, str) and said.strip().lower().startswith("yes")


def _asked(one: Any, form: Form) -> Asked | Misread:
    try:
        level = one.get("level") if isinstance(one, dict) else None
        asked = Asked.model_validate({**one, "level": level.strip().lower()} if isinstance(level, str) else one)
    except ValidationError as error:
        return Misread("not the asked shape", ".".join(map(str, error.errors()[0]["loc"])))
    if not asked.question.strip() or not asked.answer.strip():
        return Misread("an empty question or answer")
    if form == "choices":
        choices = [choice.strip() for choice in asked.choices]
        if len(choices) != 4 or not all(choices) or len({choice.casefold() for choice in choices}) < 4:
            return Misread("not four different choices")
        if asked.answer not in "ABCD" or len(asked.answer) != 1:
            return Misread("the answer is no letter of a choice", asked.answer)
    return asked


def without_thoughts(text: str) -> str:
    """What a model says after it has thought; nothing where it came to no end."""
    return _THOUGHTS.sub("", text)


def _json_in(text: str, wanted: str) -> Any:
    """The value of a reply: as it stands, in a code fence, or the last object that has `wanted` among other words, for models that nothing
    guides think aloud and explain themselves. Control characters are space: xgrammar lets them into texts, where JSON wants them escaped.

    Raises JsonFault with what is wrong with the reply as it stands.
    """
    said = _CONTROLS.sub(" ", without_thoughts(text)).strip()
    found: list[Any] = []
    whole, fault = None, None
    for candidate in (said, *_FENCED.findall(said)):
        try:
            value = decode_line(candidate, StrictDecoder())
        except JsonFault as why:
            fault = fault or why
            continue
        whole = value if candidate == said else whole
        if isinstance(value, list) or (isinstance(value, dict) and wanted in value):
            found.append(value)
    found = found or list(_objects_with(wanted, said)) or ([] if whole is None else [whole])
    if not found:
        raise fault or JsonFault("no object or list", 0)
    return found[-1]


def _objects_with(wanted: str, text: str) -> Iterator[Any]:
    position, decoder = -1, StrictDecoder()
    for _ in range(_MOST_BRACES):
        position = text.find("{", position + 1)
        if position < 0:
            return
        with contextlib.suppress(JsonFault):
            value, end, problem = decoder.decode(text, position)
            if wanted in value and not problem:
                yield value
                position = end - 1
