"""Values as texts: numbers as they were written, and the lists that pandas and numpy leave in a cell of a CSV."""

import ast
import contextlib
import datetime
import json
import re
from decimal import Decimal
from typing import Any

from data.ground.strict_json import Spelled

LARGEST_EXACT = 2**53
"""Whole numbers from here on are not all held by a float: two ids may have become one."""
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ITEM = re.compile(rf"\s*(?:np\.str_\(({_STRING})\)|({_STRING}))\s*(,?)", re.DOTALL)
_LIST = re.compile(r"\s*(?:array\()?\[\s*(?:np\.|['\"]|(?:None|nan|NaN|True|False)\b[^\w\]]|-?\d[\d.e+-]*(?:\s+-?\d[\d.e+-]*)+\s*\])")
"""How a list begins that Python or numpy has written; `[sic]` and `[1 of 3]` are texts."""

_BEHIND = re.compile(r"\]\s*(?:(?:,\s*dtype=\w+\s*)?\))?\s*")
_SQUAD = re.compile(r"\s*\{\s*['\"](?:text|answer_start)['\"]\s*:")


class NoList(ValueError):
    """A cell that was a list and cannot be read as one any more."""


def spelled(value: Any) -> str | None:
    """A number, a date or a truth value as text; None for anything else.

    A JSON number as it was written (1.50), a decimal with its places, a float that is a whole number without its `.0` (a column of whole
    numbers with gaps becomes one of floats in many tools), midnight as the day alone.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Spelled):
        return value.digits
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() and abs(value) < LARGEST_EXACT else repr(value)) if value == value else None
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else None
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() and value.tzinfo is None else value.isoformat()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value) if isinstance(value, int) else None


def listed(value: Any) -> Any:
    """The list that a text holds, as JSON (["a", "b"]) or as Python writes one (['a', 'b'], ('a', 'b'), {'a', 'b'}, numpy: ['a' 'b']), or
    SQuAD's object {"text": [...]}; any other value as it is.

    Raises NoList for one that was a list of texts and is not whole: numpy writes `…` into long ones.
    """
    if isinstance(value, str) and _SQUAD.match(value):
        return _object(value)
    if isinstance(value, str) and (held := _held(value)):
        return held
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "array(")):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return _python_list(value) if _LIST.match(value) else value
    return parsed if isinstance(parsed, list) else value


def _held(text: str) -> list[str] | None:
    """The texts of a tuple or a set as Python writes it, in the order in which they stand there; None for any other text in brackets."""
    if not text.strip().startswith(("('", '("', "{'", '{"')) or not text.rstrip().endswith((")", "}")):
        return None
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    texts = [entry.value for entry in node.elts if isinstance(entry, ast.Constant)] if isinstance(node, ast.Tuple | ast.Set) else []
    return texts if texts and all(isinstance(text, str) for text in texts) and len(texts) == len(node.elts) else None  # type: ignore[attr-defined,return-value]


def _object(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    raise NoList(text)


def _python_list(text: str) -> list[str]:
    """Without Python's own reader, for which 'a' 'b' is one text, 'ab'."""
    position, end = text.index("[") + 1, text.rfind("]")
    if end < position or not _BEHIND.fullmatch(text, end):
        raise NoList(text)
    found: list[str] = []
    while text[position:end].strip():
        item = _ITEM.match(text, position, end)
        if item is None or (found and item[0][:1] not in " \n\t" and text[position - 1] not in ", \n\t["):
            raise NoList(text)
        found.append(ast.literal_eval(item[1] or item[2]))
        position = item.end()
    return found
