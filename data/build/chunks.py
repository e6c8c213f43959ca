"""A page → documents of at most so many characters, cut where the text itself makes a break."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from data.build.pages import Page
from data.records import Document
from data.words import holds, normalise

CHARACTERS = 4096
"""As scottsus/Perpetual cut its documents."""
_FEWEST = 48
"""Bytes of UTF-8: sixteen Chinese characters say as much as eight English words."""
_PROSE = ["\n\n", "\n", ". ", "? ", "! ", "。", "？", "！", "। ", "۔ ", "; ", ", ", "；", "，", "、", " ", ""]


def cut(page: Page, characters: int, language: str | None) -> Iterator[Document]:
    """The documents of a page; each begins with the page's title, unless that stands in it anyway, so that every one says what it is of.

    Markdown and HTML are cut at headings first, code at the definitions of its language, then at empty lines, lines, sentences, words.
    Ids are the page's name and a hash of the text: the same text in the same place has the same id, whatever else the folder holds.
    """
    room = max(characters - len(page.title) - 2, characters // 2)
    split = _splitter(_syntax(page), room)
    parts = [page.text.strip()] if len(page.text.strip()) <= room else [part.strip() for part in split(page.text)]
    for number, part in enumerate(part for part in parts if part):
        text = part if holds(normalise(part), normalise(page.title)) else f"{page.title}\n\n{part}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        meta = {"page": page.name, "part": number, "format": page.format, "language": language}
        yield Document(f"{page.name}#{digest}", text, page.title, page.url, page.date, page.domain, meta=meta)


def too_short(document: Document) -> bool:
    """Nothing to ask about."""
    return len(document.text.encode("utf-8", "replace")) < _FEWEST


def _syntax(page: Page) -> str:
    if page.format == "code" and page.language is not None:
        return page.language
    return "markdown" if page.format in ("markdown", "html") else "prose"


@functools.cache
def _splitter(syntax: str, characters: int) -> Callable[[str], list[str]]:
    # langchain's packages take two seconds to import
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    settings: dict[str, Any] = {"chunk_size": characters, "chunk_overlap": 0}
    if syntax in {language.value for language in Language}:
        return RecursiveCharacterTextSplitter.from_language(Language(syntax), **settings).split_text
    return RecursiveCharacterTextSplitter(separators=_PROSE, keep_separator="end", **settings).split_text
