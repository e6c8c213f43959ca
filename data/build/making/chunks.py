"""A page → documents of at most so many characters, cut where the text itself makes a break."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from data.build.documents.titles import FENCE
from data.build.pages import Page
from data.ground.words import holds, normalise
from data.records import Document

CHARACTERS = 4096
"""As scottsus/Perpetual cut its documents."""
_FEWEST = 48
"""Bytes of UTF-8: sixteen Chinese characters say as much as eight English words."""
_OPENING = re.compile(r"[ \t]*(?:`{3,}|~{3,})")
_EMPTY_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
_PROSE = ["\n\n", "\n", ". ", "? ", "! ", "。", "？", "！", "। ", "۔ ", "; ", ", ", "；", "，", "、", " ", ""]


def cut(page: Page, characters: int, language: str | None) -> Iterator[Document]:
    """The documents of a page; each begins with the page's title (of code: its path), unless that stands in it anyway, so that every one
    says what it is of; a page without a title adds nothing.

    Markdown and HTML are cut at headings first, never inside a block of code that fits; code at the definitions of its language, then at empty lines, lines, sentences, words.
    Ids are the page's name and a hash of the text: the same text in the same place has the same id, whatever else the folder holds.
    """
    head = page.title or (page.name if page.format == "code" else "")
    room = max(characters - len(head) - 2, characters // 2)
    parts = [trimmed(part) for part in _parts(trimmed(page.text), _syntax(page), room)]
    for number, part in enumerate(part for part in parts if part):
        text = part if not head or holds(normalise(part), normalise(head)) else f"{head}\n\n{part}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        meta = {"page": page.name, "part": number, "format": page.format, "language": language}
        yield Document(f"{page.name}#{digest}", text, page.title, page.url, page.date, page.domain, meta=meta)


def trimmed(text: str) -> str:
    """Without empty lines around it; the first line keeps its indentation, for a method's body is indented against it."""
    return _EMPTY_LINES.sub("", text).rstrip()


def _parts(text: str, syntax: str, room: int) -> list[str]:
    if len(text) <= room:
        return [text]
    split = _splitter(syntax, room)
    return _around_fences(text, split, room) if syntax == "markdown" else split(text)


def _around_fences(text: str, split: Callable[[str], list[str]], room: int) -> list[str]:
    """A block of code stays whole; one that is longer than a part becomes several. Each stands for the splitter as one long word."""
    letter = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    blocks: list[str] = []

    def hide(found: re.Match[str]) -> str:
        made = _fences(found, room)
        blocks.extend(made)
        return "\n\n".join(letter * len(block) for block in made)

    parts = split(FENCE.sub(hide, text))
    if [len(run) for part in parts for run in re.findall(f"{letter}+", part)] != [len(block) for block in blocks]:
        return split(text)  # no room for a word so long beside what stands on its line
    waiting = iter(blocks)
    return [re.sub(f"{letter}+", lambda _: next(waiting), part) for part in parts]


def _fences(found: re.Match[str], room: int) -> list[str]:
    block = found[0]
    if len(block) <= room:
        return [block]
    opening, _, rest = block.partition("\n")
    fence = _OPENING.match(opening)
    assert fence
    closing = fence[0]
    code = rest.rstrip().removesuffix(closing) if rest.rstrip().endswith(closing) else rest
    inside = max(room - len(opening) - len(closing) - 2, 1)
    return [f"{opening}\n{trimmed(part)}\n{closing}" for part in _splitter("prose", inside)(code) if part.strip()]


def too_short(document: Document) -> bool:
    """Nothing to ask about."""
    return len(document.text.encode("utf-8", "replace")) < _FEWEST


def _syntax(page: Page) -> str:
    if page.format == "code" and page.language is not None:
        return page.language
    return "prose" if page.format in ("text", "pdf", "table") else "markdown"


@functools.cache
def _splitter(syntax: str, characters: int) -> Callable[[str], list[str]]:
    # langchain's packages take two seconds to import
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    settings: dict[str, Any] = {"chunk_size": characters, "chunk_overlap": 0, "strip_whitespace": False}
    if syntax in {language.value for language in Language}:
        with suppress(ValueError):  # langchain names more languages than it can split
            return RecursiveCharacterTextSplitter.from_language(Language(syntax), **settings).split_text
    return RecursiveCharacterTextSplitter(separators=_PROSE, keep_separator="end", **settings).split_text
