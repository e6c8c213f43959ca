"""A table's file as lines of bytes, however it is packed: plain, gzip (.gz), or UTF-16 with its mark (Excel's "Unicode text")."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

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
        file: Any = io.BufferedReader(gzip.GzipFile(fileobj=packed)) if path.suffix.lower() == ".gz" else packed  # type: ignore[arg-type]
        guarded = _Guarded(file)
        yield guarded if guarded.text or file is not packed else packed


class _Guarded:
    def __init__(self, file: Any) -> None:
        self._file = file
        start = self._told(lambda: file.peek(2)[:2])
        self.text = io.TextIOWrapper(file, "utf-16", newline="\n") if start in _UTF16 else None

    def readline(self, size: int = -1, /) -> bytes:
        return self._told(lambda: self.text.readline(size).encode() if self.text else self._file.readline(size))

    def read(self, size: int = -1, /) -> bytes:
        return self._told(lambda: self.text.read(size).encode() if self.text else self._file.read(size))

    def _told(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"cannot be unpacked: {error}") from None
        except UnicodeError as error:
            raise Damaged(f"begins as UTF-16 and is none: {error}") from None
