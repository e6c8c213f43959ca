"""Rows before they are records: what a reader hands on, the row that was judged good, and what is wrong with one."""

import json
from dataclasses import dataclass
from typing import Any

from data.records import Document, Record, Refusal


@dataclass(frozen=True, slots=True)
class Row:
    """One good row. A question without an id of its own has id "" (data.load names it)."""

    where: str
    record: Record
    fallback_id: str
    """`path:line` below data.root: a name that does not depend on the machine."""
    parent: Document | None = None
    """The document in which this question was nested."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One row before it is judged."""

    place: str
    """The line or row, as it follows the path: ":12"."""
    values: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no row; `ends`: nothing after it can be read."""

    place: str
    reason: str
    value: Any = None
    ends: bool = False


class BadRow(ValueError):
    """Why a row cannot be used; `value` is what to quote."""

    def __init__(self, reason: str, value: Any = None):
        super().__init__(reason)
        self.reason = reason
        self.value = value


def excerpt(value: Any, limit: int = 60) -> str:
    """At most `limit` printable characters of a text, or of a value's JSON, on one line."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value[: 4 * limit].decode("utf-8", "replace")
    elif not isinstance(value, str):
        value = _as_json(value)
    value = value[: 8 * limit].encode("utf-8", "backslashreplace").decode("utf-8")
    value = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return value if len(value) <= limit else value[: limit - 1] + "…"


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError, TypeError):
        return f"({type(value).__name__})"


def refusal(shown: str, fault: Fault) -> Refusal:
    """The record of a fault; `shown` is the path as people see it."""
    return Refusal(shown + fault.place, fault.reason, excerpt(fault.value), ends_source=fault.ends)
