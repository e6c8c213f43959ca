"""A table's file as lines of bytes, however it is packed: plain, gzip (.gz), or UTF-16 with its mark (Excel's "Unicode text")."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Damaged(ValueError):
    """Why nothing more can be read of a packed file."""


class Lines(Protocol):
    def readline(self, size: int = -1, /) -> bytes: ...
    def read(self, size: int = -1, /) -> bytes: ...


@contextmanager
def open_rows(path: Path) -> Iterator[Lines]:
    """The file's bytes, unpacked, in UTF-8 where they were UTF-16. Reading raises Damaged where they end too soon or are none."""
    with path.open("rb") as packed:
        file: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=packed)) if path.suffix.lower() == ".gz" else packed  # type: ignore[arg-type]
        yield _Guarded(file)


class _Guarded:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._text = file, None
        with _told():
            start = file.peek(2)[:2]  # type: ignore[attr-defined]
        self._text = io.TextIOWrapper(file, "utf-16", newline="\n") if start in _UTF16 else None

    def readline(self, size: int = -1, /) -> bytes:
        with _told():
            return self._text.readline(size).encode() if self._text else self._file.readline(size)

    def read(self, size: int = -1, /) -> bytes:
        with _told():
            return self._text.read(size).encode() if self._text else self._file.read(size)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Damaged(f"cannot be unpacked: {error}") from None
    except UnicodeError as error:
        raise Damaged(f"begins as UTF-16 and is none: {error}") from None
