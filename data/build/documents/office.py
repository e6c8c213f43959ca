"""Word, PowerPoint, notebooks and e-books → Markdown, by the same rules as pages of the web (data/build/documents/markup.py). Runs in the confined process.

.docx by mammoth, .pptx by python-pptx, both as zip archives of XML; an .epub is one of XHTML; an .ipynb is JSON.
"""

import json
import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from data.build.documents.formulae import formulae_written_out, written
from data.build.documents.markup import lowered, page, raised, readable
from data.ground.archive import NoDocument, open_archive

_STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"
_CORE = "docProps/core.xml"
_DC = "{http://purl.org/dc/elements/1.1/}"
_TERMS = "{http://purl.org/dc/terms/}"


def docx(path: str) -> dict[str, Any]:
    import mammoth
    from bs4 import BeautifulSoup

    with open_archive(path) as archive, open(path, "rb") as file:
        about = _core(archive)
        made = mammoth.convert_to_html(
            formulae_written_out(archive) or file,
            style_map=_STYLES,
            include_embedded_style_map=False,
            convert_image=lambda image: [],
            ignore_empty_paragraphs=True,
        )
    soup = BeautifulSoup(made.value, "lxml")
    heading = soup.find("h1")
    title = heading.get_text(" ", strip=True) if heading else ""
    return {"text": readable(soup), "title": title, "heading": about.get("title"), "date": about.get("modified")}


def pptx(path: str) -> dict[str, Any]:
    """A slide under its title, what stands in its shapes, then the speaker's notes."""
    from pptx import Presentation

    with open_archive(path) as archive:
        about = _core(archive)
    slides = Presentation(path).slides
    for slide in slides:
        _unwrap(slide.shapes._spTree)
    texts, titles = [], []
    for slide in slides:
        heading = slide.shapes.title
        title = _line(heading.text_frame) if heading is not None and heading.has_text_frame else ""
        titles.append(title)
        others = (shape for shape in slide.shapes if heading is None or shape.shape_id != heading.shape_id)
        parts = [f"## {title}" if title else "", *(text for shape in others for text in _shape(shape))]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(_runs_of(slide.notes_slide.notes_text_frame))
        texts.append("\n\n".join(part.strip() for part in parts if part.strip()))
    return {
        "text": "\n\n".join(filter(None, texts)),
        "title": titles[0] if titles else "",
        "heading": about.get("title"),
        "date": about.get("modified"),
    }


def _unwrap(tree: Any) -> None:
    """A shape that holds a formula stands in an alternative, beside a picture of it for programs that know none; python-pptx passes over both."""
    for alternative in list(tree.iter("{*}AlternateContent")):
        choice = next((part for kind in ("Choice", "Fallback") if (part := alternative.find(f"{{*}}{kind}")) is not None and len(part)), ())
        for one in list(choice):
            alternative.addprevious(one)
        alternative.getparent().remove(alternative)


def _shape(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for one in shape.shapes:
            yield from _shape(one)
    elif getattr(shape, "has_table", False):
        rows: list[list[str]] = []
        for row in shape.table.rows:
            above = rows[-1] if rows else []
            rows.append([above[n] if above and cell._tc.vMerge else _line(cell.text_frame) for n, cell in enumerate(row.cells)])
        lines = [f"| {' | '.join(row)} |" for row in rows]
        yield "\n".join([*lines[:1], "|" + " --- |" * len(rows[0]) if rows else "", *lines[1:]])
    elif shape.has_text_frame:
        yield _runs_of(shape.text_frame)


def _line(frame: Any) -> str:
    return " ".join(_runs_of(frame).split())


def _runs_of(frame: Any) -> str:
    lines = []
    for paragraph in frame.paragraphs:
        text = ""
        for part in paragraph._p:
            kind = part.tag.rpartition("}")[2]
            if kind == "m":
                text += "".join(written(formula) for formula in part.iter("{*}oMath"))
                continue
            said = "".join(t.text or "" for t in part.iter("{*}t")) if kind in ("r", "fld") else "\n" if kind == "br" else ""
            properties = part.find("{*}rPr")
            offset = int(properties.get("baseline", "0").rstrip("%")) if properties is not None else 0
            text += raised(said) if offset > 0 else lowered(said) if offset < 0 else said
        lines.append(text)
    return "\n".join(lines)


def ipynb(path: str) -> dict[str, Any]:
    """Cells of text as they are, cells of code in fences; what the code has printed is left out."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            book = json.load(file)
        cells, about = book["cells"], book.get("metadata") or {}
        language = (about.get("language_info") or about.get("kernelspec") or {}).get("name", "python")
        texts = [_cell(cell, re.sub(r"\W.*|\d.*", "", str(language)) or "python") for cell in cells]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        old = isinstance(error, KeyError) and "worksheets" in book
        raise NoDocument("of Jupyter before 2015; open and save it once" if old else "not a notebook") from None
    return {"text": "\n\n".join(filter(None, texts)), "title": about.get("title"), "date": None}


def _cell(cell: dict[str, Any], language: str) -> str:
    source = cell["source"]
    text = source if isinstance(source, str) else "".join(source)
    if cell["cell_type"] != "code" or not text.strip():
        return text.strip() if cell["cell_type"] == "markdown" else ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`{3,}", text)), default=2))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def epub(path: str) -> dict[str, Any]:
    """The chapters in the order of the book's spine, without its table of contents."""
    with open_archive(path) as archive:
        place = _xml(archive, "META-INF/container.xml").find(".//{*}rootfile").get("full-path")
        book = _xml(archive, place)
        hidden = "META-INF/encryption.xml" in archive.namelist() and _locked(archive)
        items = {item.get("id"): item for item in book.findall(".//{*}manifest/{*}item")}
        texts = []
        for reference in book.findall(".//{*}spine/{*}itemref"):
            item = items.get(reference.get("idref"))
            if item is None or "nav" in (item.get("properties") or "").split() or "html" not in (item.get("media-type") or ""):
                continue
            name = posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(item.get("href") or "")))
            if hidden and name in hidden:
                raise NoDocument("locked against copying (DRM)")
            texts.append(page(archive.read(name))["text"].strip())
    title, date = book.find(f".//{_DC}title"), book.find(f".//{_DC}date")
    return {
        "text": "\n\n".join(filter(None, texts)),
        "title": "".join(title.itertext()) if title is not None else "",
        "date": (date.text or "")[:10] if date is not None else None,
    }


def _locked(archive: zipfile.ZipFile) -> set[str]:
    return {unquote(found.get("URI") or "") for found in _xml(archive, "META-INF/encryption.xml").iter("{*}CipherReference")}


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    from lxml import etree

    return etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False, no_network=True))


def _core(archive: zipfile.ZipFile) -> dict[str, str]:
    """Title and last day as the program has noted them (the day of creation is often the template's); where there are none, nothing."""
    if _CORE not in archive.namelist():
        return {}
    about = _xml(archive, _CORE)
    title, modified = about.find(f"{_DC}title"), about.find(f"{_TERMS}modified")
    return {
        "title": title.text or "" if title is not None else "",
        **({"modified": modified.text[:10]} if modified is not None and modified.text else {}),
    }
