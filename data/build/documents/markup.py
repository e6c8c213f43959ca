"""HTML as the web has it → Markdown: the page's content without its menus, its tables with every cell in its row, its formulae as they read."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from markdownify import MarkdownConverter

from data.build.documents.encodings import decode

_NEVER = ["head", "script", "style", "iframe", "embed", "svg", "canvas", "input", "button", "select", "textarea", "datalist", "rt", "rp"]
_BESIDE = ("nav", "footer", "aside", "object", "noscript")
"""Mostly no content; sometimes all of it."""
_HIDDEN = '[hidden]:not([hidden="until-found"]), [style*="display:none"], [style*="display: none"]'
_BLOCKS = (
    "main", "header", "footer", "nav", "aside", "address", "figure", "fieldset", "legend", "details", "summary", "dialog", "hgroup", "center",
    "form", "search", "noscript", "object", "menu", "dir",
)  # fmt: skip
"""What browsers set apart and markdownify does not: their words would run into each other."""
_HELD = 0.5
"""Share of a page's text from which what holds it is the page and no menu beside it."""
_PLEASE_ENABLE = 200
"""Characters: a shorter <noscript> asks for JavaScript, a longer one may be the page for those without."""
_COPIED_CHARACTERS = 1000
"""Of a cell that spans rows: longer ones are not repeated in each."""
_PERMALINKS = ("¶", "#", "§", "🔗")
"""What a heading is followed by in generated pages: no part of it."""
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
_RAISED = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_LOWERED = str.maketrans("0123456789+-−=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")
_ORDINAL = re.compile(r"st|nd|rd|th|er|re|e|è?me|nde?|os?|as?", re.I)
_MARK = re.compile(r"[º°®©™*†‡§]+|TM|SM|me|lle", re.I)


def page(content: bytes) -> dict[str, Any]:
    """{"text", "title", "date"} of a page. Raises LookupError and UnicodeDecodeError as data.build.documents.encodings.decode."""
    label = EncodingDetector.find_declared_encoding(content, is_html=True, search_entire_document=False)
    soup = BeautifulSoup(_INVISIBLE.sub("", decode(content, label)), "lxml")  # closes <li>, <p> and <td> where HTML does
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    published = soup.find("meta", attrs={"property": "article:published_time"}) or soup.find("meta", attrs={"name": "date"})
    date = published.get("content") if published else None
    text = readable(soup)
    heading = soup.find("h1")
    shown = _converted(BeautifulSoup(str(heading), "lxml")).lstrip("#").strip() if heading else ""
    return {"text": text, "title": title, "heading": shown, "date": date}


def readable(soup: BeautifulSoup) -> str:
    """What can be read of a page; changes the soup."""
    for tag in soup(_NEVER):
        tag.decompose()
    for tag in soup(["label", "template"]):
        if tag.get("for") or (tag.name == "template" and not tag.get("shadowrootmode")):  # a declared shadow root is shown
            tag.decompose()
    for link in [*soup("a"), *soup.select(".mw-editsection, .katex-html")]:
        if link.name != "a" or link.get_text(strip=True) in _PERMALINKS:
            link.decompose()
    for formula in soup("math"):
        _write_out(formula)
    _leave_out_menus(soup)
    for table in soup("table"):
        if _lays_out(table):
            for tag in [table, *(tag for tag in table(["thead", "tbody", "tfoot", "tr", "td", "th"]) if tag.find_parent("table") is table)]:
                tag.name = "div"
    for table in soup("table"):
        _fill_spans(table)
    for tag in soup(list(_BLOCKS)):
        tag.name = "ul" if tag.name in ("menu", "dir") else "div"
    return _converted(soup)


def _lays_out(table: Tag) -> bool:
    """Whether a table is one of a page's design: it has no heads, and holds tables, headings or paragraphs where one of data holds values.
    One inside a cell of data cannot be written as a table either."""
    if table.get("role") in ("presentation", "none") or table.find_parent("table"):
        return True
    if any(head.find_parent("table") is table for head in table(["th", "caption", "thead"])):
        return False
    held = table(["table", "h1", "h2", "h3", "h4", "pre", "blockquote"])
    return bool(held) or any(len(cell.find_all("p", recursive=False)) > 1 for cell in table("td"))


def _converted(soup: BeautifulSoup) -> str:
    return str(_Markdown(heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False).convert_soup(soup))


_MOVED = {
    "msup": ("", "sup"), "msub": ("", "sub"), "msubsup": ("", "sub", "sup"), "mover": ("", "sup"), "munder": ("", "sub"), "munderover": ("", "sub", "sup"),
}  # fmt: skip


def _write_out(formula: Tag) -> None:
    """MathML as the TeX that it carries; without any its exponents and indices as those of HTML, for 10 and 30 would be read as 1030."""
    source = formula.find("annotation", attrs={"encoding": re.compile("tex", re.I)})
    if tex := str(formula.get("alttext") or (source.get_text() if source else "")).strip():
        formula.replace_with(f"${tex}$")
        return
    for name, moved in _MOVED.items():
        for tag in formula(name):
            for part, becomes in zip(tag.find_all(True, recursive=False), moved, strict=False):
                if becomes:
                    part.wrap(BeautifulSoup("", "lxml").new_tag(becomes))
    for tag in formula("mfrac"):
        parts = tag.find_all(True, recursive=False)
        for part in parts:
            if len(part.get_text(strip=True)) > 1:
                part.insert(0, "(")
                part.append(")")
        for part in parts[1:]:
            part.insert_before("/")
    for tag in formula(["msqrt", "mroot"]):
        degree = tag.find_all(True, recursive=False)[1:] if tag.name == "mroot" else []
        for part in degree:
            part.wrap(BeautifulSoup("", "lxml").new_tag("sup"))
        root = [part for part in tag.contents if part not in [one.parent for one in degree]]
        tag.extend([*(one.parent for one in degree), "√(", *root, ")"])
    for tag in formula(["mtd", "mtr"]):  # a matrix by rows
        if tag.find_next_sibling(tag.name):
            tag.append(", " if tag.name == "mtd" else "; ")


def _leave_out_menus(soup: BeautifulSoup) -> None:
    """Of the outermost first. An <aside> or <footer> inside an article is a remark or its notes."""
    whole = len(soup.get_text(strip=True))
    for tag in [*soup.select(_HIDDEN), *soup(list(_BESIDE))]:
        if tag.decomposed or (tag.name in ("aside", "footer") and tag.find_parent(("article", "main", "blockquote"))):
            continue
        held = len(tag.get_text(strip=True))
        if held <= _HELD * whole or (tag.name == "noscript" and held < _PLEASE_ENABLE):
            tag.decompose()


def _fill_spans(table: Tag) -> None:
    """A cell over several rows stands in each of them: without it the cells behind it would slip into other columns."""
    left: dict[int, tuple[int, Tag]] = {}  # column → (rows to come, the cell)
    for row in _rows_of(table):
        cells, column = iter([cell for cell in row.find_all(("td", "th"), recursive=False)]), 0
        next_left: dict[int, tuple[int, Tag]] = {}
        cell = next(cells, None)
        while cell is not None or any(at >= column for at in left):
            if column in left:
                rows, spanning = left.pop(column)
                copy = _copy(spanning)
                row.append(copy) if cell is None else cell.insert_before(copy)
                if rows > 1:
                    next_left[column] = rows - 1, spanning
                column += _span(spanning, "colspan")
            elif cell is not None:
                if (rows := _span(cell, "rowspan")) > 1:
                    next_left[column] = rows - 1, cell
                column += _span(cell, "colspan")
                cell = next(cells, None)
            else:
                column += 1
        left = next_left


def _rows_of(table: Tag) -> Iterator[Tag]:
    for row in table.find_all("tr"):
        if row.find_parent("table") is table:
            yield row


def _copy(cell: Tag) -> Tag:
    if len(cell.get_text()) > _COPIED_CHARACTERS or cell.find("table"):
        empty = copy.copy(cell)
        empty.clear()
        return empty
    return copy.copy(cell)


def _span(cell: Tag, name: str) -> int:
    said = str(cell.get(name) or "1").strip()
    return min(max(int(said), 1), 1000) if said.isascii() and said.isdecimal() and len(said) < 6 else 1


class _Markdown(MarkdownConverter):  # type: ignore[misc]
    def convert_sup(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        plain, before = text.strip(), str(el.previous_sibling or "")[-1:]
        if plain.isdecimal() and (el.find("a") or el.find_parent("a")):
            return f"[{plain}]"  # of a note: 1911¹ would be another year
        if plain.startswith("[") or _MARK.fullmatch(plain) or (before.isdigit() and _ORDINAL.fullmatch(plain)):
            return text
        return raised(plain)

    def convert_sub(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return lowered(text.strip())

    def convert_pre(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        """As markdownify does, with a fence longer than any that the code holds."""
        made = str(super().convert_pre(el, text, parent_tags))  # type: ignore[misc]
        longest = max(map(len, re.findall("`{3,}", text)), default=0)
        if not longest:
            return made
        (before, _, rest), fence = made.partition("```"), "`" * (longest + 1)
        body, _, after = rest.rpartition("```")
        return f"{before}{fence}{body}{fence}{after}"


def raised(text: str) -> str:
    return _moved(text, _RAISED, "^")


def lowered(text: str) -> str:
    return _moved(text, _LOWERED, "_")


def _moved(text: str, letters: dict[int, int], mark: str) -> str:
    """10³⁰, H₂O; x^(ab), x_max where Unicode has no such letters."""
    if not text.strip() or (all(ord(character) in letters for character in text) and not (text.isalpha() and len(text) > 1)):
        return text.translate(letters)
    return mark + (text if text.isalnum() and (mark == "_" or len(text) == 1) else f"({text})")
