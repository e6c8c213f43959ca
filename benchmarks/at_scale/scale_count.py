"""Counts what one of many ranks reads, writes and holds."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from either_build import of


class Counted:
    """Bytes and openings of the files below a folder: through os.preadv, open() and safetensors' safe_open, whatever of them a build uses."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.bytes = self.openings = 0
        self.seconds = 0.0
        self.peak = 0
        self._files: dict[int, bool] = {}

    def open(self, *arguments: Any, **keywords: Any) -> Any:
        file = self._real_open(*arguments, **keywords)
        if str(arguments[0]).startswith(self._folder):
            self.openings += 1
            self._files[file.fileno()] = True
            if "b" in str(arguments[1:] or keywords.get("mode", "")) and not isinstance(file, _Through) and hasattr(file, "readinto"):
                return _Through(file, self)
        return file

    @contextmanager
    def counting(self) -> Iterator[None]:
        import builtins
        import io

        self._real_open, preadv, io_open = builtins.open, os.preadv, io.open

        def counted_preadv(descriptor: int, buffers: Any, offset: int) -> int:
            count = preadv(descriptor, buffers, offset)
            self.bytes += count
            return count

        builtins.open = io.open = self.open  # type: ignore[assignment]
        os.preadv = counted_preadv  # type: ignore[assignment]
        safe = self._count_safe_open()
        try:
            yield
        finally:
            builtins.open, io.open, os.preadv = self._real_open, io_open, preadv
            safe()

    def _count_safe_open(self) -> Callable[[], None]:
        module = of("trainer.store.weights")
        real = getattr(module, "safe_open", None)
        if real is None:
            return lambda: None
        module.safe_open = lambda path, **keywords: _Safe(real(path, **keywords), self)  # type: ignore[attr-defined]

        def back() -> None:
            module.safe_open = real  # type: ignore[attr-defined]

        return back

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part of the work whose time and host memory count: what was held before is not counted."""
        Path("/proc/self/clear_refs").write_text("5")
        before, started = status_bytes("VmRSS"), time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.peak = max(self.peak, status_bytes("VmHWM") - before)


class _Through:
    """A file whose reads are counted."""

    def __init__(self, file: Any, counted: Counted) -> None:
        self._file, self._counted = file, counted

    def read(self, *arguments: Any) -> Any:
        data = self._file.read(*arguments)
        self._counted.bytes += len(data)
        return data

    def readinto(self, buffer: Any) -> Any:
        count = self._file.readinto(buffer)
        self._counted.bytes += count or 0
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Through":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


class _Safe:
    """safe_open's file: what is taken out of it counts, and one opening."""

    def __init__(self, file: Any, counted: Counted) -> None:
        self._file, self._counted = file, counted
        counted.openings += 1

    def __enter__(self) -> "_Safe":
        self._file.__enter__()
        return self

    def __exit__(self, *arguments: Any) -> None:
        self._file.__exit__(*arguments)

    def keys(self) -> Any:
        return self._file.keys()

    def metadata(self) -> Any:
        return self._file.metadata()

    def get_tensor(self, name: str) -> Any:
        tensor = self._file.get_tensor(name)
        self._counted.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def get_slice(self, name: str) -> Any:
        return _Slice(self._file.get_slice(name), self._counted)


class _Slice:
    def __init__(self, part: Any, counted: Counted) -> None:
        self._part, self._counted = part, counted

    def get_shape(self) -> Any:
        return self._part.get_shape()

    def __getitem__(self, index: Any) -> Any:
        tensor = self._part[index]
        self._counted.bytes += tensor.numel() * tensor.element_size()
        return tensor


def status_bytes(key: str) -> int:
    """Bytes of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024
