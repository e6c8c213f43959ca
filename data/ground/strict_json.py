"""JSON that hides nothing: duplicate keys, NaN and lone surrogates are named, and each element of a list knows its line.

Python's own reader keeps the last of two equal keys without a word, takes NaN for a number, and makes strings that
no file can hold again from `\\ud800`.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data.ground.opened import Lines

MAX_ROW_BYTES = 32 * 1024 * 1024
MAX_DIGITS = 4300  # Python's own limit for turning digits into an int
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
BOM = b"\xef\xbb\xbf"


class JsonFault(ValueError):
    """Why a text is not one good JSON value. `position` is the offset in the text, -1 where unknown."""

    def __init__(self, reason: str, position: int = -1, broken: bool = True):
        super().__init__(reason)
        self.reason = reason
        self.position = position
        self.broken = broken
        """False: the value ends where it should, so that what follows it can be read."""


class Spelled(float):
    """A number that knows how it was written: 1.50 is a price."""

    digits: str


class StrictDecoder:
    """Decodes one value at a time; what is wrong inside a well-formed value is gathered, so that its end stays known."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float, parse_int=self._int
        )

    def decode(self, text: str, start: int = 0) -> tuple[Any, int, str | None]:
        """The value at `start`, the offset behind it, and what is wrong inside it (None if nothing).

        Raises JsonFault where the value has no end: malformed, cut off, or nested too deep.
        """
        self._problems.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise JsonFault(f"malformed JSON: {error.msg}", error.pos) from None
        except RecursionError:
            raise JsonFault("JSON is nested too deep", start) from None
        if not self._problems and _SURROGATE.search(text, start, end):
            self._find_surrogate(value)
        return value, end, self._problems[0] if self._problems else None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            self._problems.append(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!a}")
        return values

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name} is not a JSON number")

    def _float(self, digits: str) -> float:
        number = Spelled(digits)
        if math.isinf(number):
            self._problems.append("a number too large to be held")
        number.digits = digits
        return number

    def _int(self, digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            self._problems.append(f"a number of more than {MAX_DIGITS} digits")
            return 0
        return int(digits)

    def _find_surrogate(self, value: Any) -> None:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            self._problems.append(f"lone surrogate {error.object[error.start]!a}")
        except RecursionError:
            self._problems.append("JSON is nested too deep")


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a JSON list. `fault` says why `value` must not be used."""

    place: str
    """`:line`, or `:line#n` for the n-th of the list where several stand on one line: no two elements share a place."""
    text: str
    value: Any = None
    fault: JsonFault | None = None


def decode_line(text: str, decoder: StrictDecoder) -> Any:
    """The one value of a line. Raises JsonFault."""
    start = _skip(text, 0)
    value, end, problem = decoder.decode(text, start)
    end = _skip(text, end)
    if end != len(text):
        raise JsonFault("malformed JSON: something follows the value", end)
    if problem:
        raise JsonFault(problem, broken=False)
    return value


def scan_list(text: str) -> Iterator[Element]:
    """Each element of the one list that `text` must be, with its place (lines and numbers from 1).

    A fault inside a well-formed element spoils that element; a break in the syntax is the last thing yielded,
    because nothing tells where the next element would begin.
    """
    decoder = StrictDecoder()
    position = _skip(text, 0)
    lines = _Lines(text)
    if text[position : position + 1] != "[":
        fault = JsonFault("expected one list of objects: [{…}, …] (for one object a line use format: jsonl)", position)
        yield Element(f":{lines.at(position)}", text[position : position + 200], fault=fault)
        return
    position = _skip(text, position + 1)
    if text[position : position + 1] == "]":
        yield from _nothing_after(text, position + 1, lines)
        return
    while True:
        start = position
        try:
            value, position, problem = decoder.decode(text, start)
        except JsonFault as fault:
            at = max(fault.position, start)
            yield Element(f":{lines.at(at)}", text[max(start, at - 30) : at + 30], fault=fault)
            return
        if position - start > MAX_ROW_BYTES:
            problem = f"longer than {MAX_ROW_BYTES >> 20} MB"
        fault_inside = JsonFault(problem, broken=False) if problem else None
        yield Element(lines.place(start), text[start : min(position, start + 200)], value, fault_inside)
        position = _skip(text, position)
        mark = text[position : position + 1]
        if mark == "]":
            yield from _nothing_after(text, position + 1, lines)
            return
        if mark != ",":
            reason = "malformed JSON: expected , or ] after an element" if mark else "truncated: the list is never closed"
            yield Element(f":{lines.at(position)}", text[position : position + 200], fault=JsonFault(reason, position))
            return
        position = _skip(text, position + 1)


class _Lines:
    """1-based line of rising offsets, counting each newline once."""

    def __init__(self, text: str):
        self._text, self._offset, self._line = text, 0, 1
        self._num_places, self._last = 0, 0

    def at(self, offset: int) -> int:
        if offset < self._offset:
            return 1 + self._text.count("\n", 0, offset)
        self._line += self._text.count("\n", self._offset, offset)
        self._offset = offset
        return self._line

    def place(self, offset: int) -> str:
        """Of the next element."""
        line = self.at(offset)
        self._num_places += 1
        shared, self._last = line == self._last, line
        return f":{line}#{self._num_places}" if shared else f":{line}"


def _nothing_after(text: str, position: int, lines: _Lines) -> Iterator[Element]:
    position = _skip(text, position)
    if position != len(text):
        yield Element(
            f":{lines.at(position)}",
            text[position : position + 200],
            fault=JsonFault("malformed JSON: something follows the list", position),
        )


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match
    return match.end()


def bounded_lines(file: Lines) -> Iterator[tuple[int, bytes, bool]]:
    """(1-based number, the line, whether it was longer than MAX_ROW_BYTES: then only its beginning)."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        too_long = len(line) > MAX_ROW_BYTES
        rest = line
        while too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(1 << 20)
        yield number, line[:1024] if too_long else line, too_long
