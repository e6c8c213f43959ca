"""The confined process that parses PDF, HTML, Office files, notebooks and e-books: other people's parsers on other people's files (data/build/confined.py starts it).

Speaks frames on stdin and stdout: four bytes of length, then JSON. In: {"path", "format"}; out: {"text", "title", "date"} or {"error"}.
It has no secrets in its environment, cannot write a file, and is killed when it takes too long or too much memory. Nothing that a
file names is fetched, and no script in it runs: the parsers know no such thing.
"""

import json
import os
import resource
import struct
import sys
import warnings
from typing import Any, BinaryIO

MAX_TEXT = 32 * 1024 * 1024
_DEEPEST = 6000
"""Calls: about 1,900 tags in each other, for pages that never close their <font>."""
_MAX_PAGES = 20_000


class Unreadable(ValueError):
    """Why a file has no text, for people."""


def read_frame(stream: BinaryIO) -> Any:
    """The next frame, or None at the end."""
    head = stream.read(4)
    return json.loads(stream.read(struct.unpack(">I", head)[0])) if len(head) == 4 else None


def write_frame(stream: BinaryIO, value: Any) -> None:
    body = json.dumps(value).encode()
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def html(path: str) -> dict[str, Any]:
    """A page's text as Markdown, so that headings, lists and tables stay what they are."""
    from data.build.documents.markup import page

    with open(path, "rb") as file:
        content = file.read()
    try:
        return page(content)
    except LookupError as error:
        raise Unreadable(f"an encoding that nobody knows: {str(error)[:40]!a}") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"not {error.encoding.upper()[:40]} at byte {error.start + 1}; save it as UTF-8") from None


def pdf(path: str) -> dict[str, Any]:
    """The text of every page, an empty line between two."""
    from pypdf import PdfReader
    from pypdf.errors import LimitReachedError, PyPdfError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted; save it without its password")
        texts, size = [], 0
        for number, page in enumerate(reader.pages):
            if number >= _MAX_PAGES:
                raise Unreadable(f"more than {_MAX_PAGES:,} pages")
            texts.append(page.extract_text())
            size += len(texts[-1])
            if size > MAX_TEXT:
                raise Unreadable(f"more than {MAX_TEXT >> 20} MB of text")
        about = reader.metadata
        title = about.title if about else None
        made = about.get("/CreationDate") if about else None
    except LimitReachedError:
        raise Unreadable("a stream of it unpacks to far more than it should (a zip bomb?)") from None
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"not a readable PDF: {type(error).__name__}") from None
    if not any(text.strip() for text in texts):
        raise Unreadable("no text in it (scanned pages? recognise their text first)")
    date = f"{made[2:6]}-{made[6:8]}-{made[8:10]}" if isinstance(made, str) and made[:2] == "D:" and made[2:10].isdecimal() else None
    return {"text": "\n\n".join(texts), "title": str(title) if title else "", "date": date}


def _encodable(value: Any) -> str | None:
    """Without the half characters that a PDF's own tables may name."""
    return value.encode("utf-8", "ignore").decode("utf-8") if isinstance(value, str) else None


def extract(format: str, path: str) -> dict[str, Any]:
    """{"text", "title", "date"} or {"error"}. Never raises."""
    from data.build.documents import office
    from data.ground.archive import NoDocument

    try:
        found = (html if format == "html" else pdf if format == "pdf" else getattr(office, format))(path)
        if len(found["text"]) > MAX_TEXT:
            raise Unreadable(f"more than {MAX_TEXT >> 20} MB of text")
        return {name: _encodable(value) for name, value in found.items()}
    except (Unreadable, NoDocument) as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "nested too deep"}
    except MemoryError:
        return {"error": "takes more memory than a document should"}
    except Exception as error:  # whatever a parser does to one file, the other files are read
        what = "its parser failed" if format == "html" else f"not a readable {format.upper()}"
        return {"error": f"{what}: {type(error).__name__}"}


def main(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(_DEEPEST)
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints is no frame
    while (wanted := read_frame(sys.stdin.buffer)) is not None:
        write_frame(frames, extract(wanted["format"], wanted["path"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
