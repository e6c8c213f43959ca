"""A process of its own for parsers of other people's files: bounded in time and memory, without secrets, replaced when it dies."""

import contextlib
import os
import selectors
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from data.build.documents.extract import MAX_TEXT, write_frame
from data.ground.strict_json import StrictDecoder, decode_line

_CHECKOUT = Path(__file__).resolve().parents[2]
_MEMORY_BYTES = 1536 << 20
_TIMEOUT_S = 60.0
_MAX_FRAME = 8 * MAX_TEXT  # JSON may write a character as \uXXXX, twice


class Confined:
    """Use as a context manager; the process starts with the first file."""

    def __init__(self, timeout_s: float = _TIMEOUT_S, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Confined":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill()

    def read(self, format: str, path: Path) -> dict[str, Any]:
        """{"text", "title", "date"}, or {"error": reason} (data/build/documents/extract.py)."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            write_frame(self._process.stdin, {"format": format, "path": str(path.absolute())})  # type: ignore[arg-type]
            answer = self._frame()
        except (BrokenPipeError, EOFError):
            self._kill()
            return {"error": "its parser died (out of memory, or a fault of the parser)"}
        except TimeoutError:
            self._kill()
            return {"error": f"not read within {self._timeout_s:g} s"}
        return answer

    def _start(self) -> None:
        known = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data.build.documents.extract", str(self._memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_CHECKOUT,
            env=known,
        )

    def _frame(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        length = struct.unpack(">I", self._bytes(4, deadline))[0]
        if length > _MAX_FRAME:
            raise EOFError
        value = decode_line(self._bytes(length, deadline).decode("ascii"), StrictDecoder())
        return value if isinstance(value, dict) else {"error": "its parser failed"}

    def _bytes(self, num: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        parts: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while num:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                part = os.read(descriptor, min(num, 1 << 20))
                if not part:
                    raise EOFError
                parts.append(part)
                num -= len(part)
        return b"".join(parts)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):  # what it was still to be told
                    stream.close()
        self._process = None
