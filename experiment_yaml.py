"""An experiment's file as YAML that knows its lines, and overrides of its values; what the values mean is experiment.py's."""

import re
from pathlib import Path
from typing import Any

import yaml

from console import UserError

_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 3e-5 (no dot) and 2.5e10 (no sign) for texts; people, and YAML 1.2, mean numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


def _node(text: str) -> yaml.Node | None:
    return _Loader(text).get_single_node()


def _value(text: str) -> Any:
    return _Loader(text).get_single_data()


class ExperimentError(UserError):
    """`path:line: key: reason`, or `override a.b=c: key: reason`."""


def parse(text: str, path: Path) -> tuple[yaml.Node | None, Any]:
    """The file as nodes, which know their lines, and as values."""
    try:
        node = _node(text)
        _refuse_large(node, path)
        return node, _value(text)
    except RecursionError:
        raise ExperimentError(f"{path}: nested too deep; an experiment has a handful of levels") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that Python does not hold
        if isinstance(error, ExperimentError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        tab = "; indent with spaces, not tabs" if "\\t" in reason else ""
        raise ExperimentError(f"{path}:{line}: not YAML: {reason}{tab}") from None


def _refuse_large(root: yaml.Node | None, path: Path) -> None:
    """An alias may stand for a node that holds aliases: a few lines that are billions of values, or one that holds itself."""
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node), -1)
        if known is None:
            raise ExperimentError(f"{path}:{node.start_mark.line + 1}: an alias inside what it stands for")
        if known >= 0:
            return known
        sizes[id(node)] = None
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else parts
        total = 1 + sum(map(size, parts))
        if total > _MOST_VALUES:
            raise ExperimentError(f"{path}:{node.start_mark.line + 1}: aliases make more than {_MOST_VALUES:,} values of it")
        sizes[id(node)] = total
        return total

    if root is not None:
        size(root)


def line_of(path: str | Path, key: str | tuple[str | int, ...]) -> int:
    """1-based line of the deepest part of `key` ("arms.mine.stages.0", or its parts where one has a dot) that the file holds."""
    node = _node(Path(path).read_text(encoding="utf-8"))
    parts = tuple(int(part) if part.isdecimal() else part for part in key.split(".")) if isinstance(key, str) else key
    return line_at(node, parts)


def line_at(node: yaml.Node | None, loc: tuple[Any, ...]) -> int:
    """1-based line of the deepest node of `loc` that exists."""
    line = node.start_mark.line if node else 0
    for key in loc:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line
        else:
            break
    return line + 1


def deeper(node: yaml.Node | None, loc: tuple[Any, ...], message: str) -> tuple[tuple[Any, ...], str]:
    """Our own validators name keys below `loc` at the beginning of the text ("space.dials.rate: reason"): as far as the file has them."""
    for key in loc:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((v for k, v in pairs if k.value == str(key)), None)
    while loc and isinstance(node, yaml.MappingNode):
        begins = [(k.value, v) for k, v in node.value if message.startswith((f"{k.value}.", f"{k.value}: "))]
        if not begins:
            break
        key, node = max(begins, key=lambda pair: len(pair[0]))
        loc, message = (*loc, key), message[len(key) :].removeprefix(".").removeprefix(": ")
    return loc, message


def refuse_duplicate_keys(node: yaml.Node | None, path: Path) -> None:
    """YAML keeps the last of two equal keys without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ExperimentError(f"{path}:{key.start_mark.line + 1}: {key.value}: given twice")
            seen.add(key.value)
            refuse_duplicate_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            refuse_duplicate_keys(value, path)


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ExperimentError(f"override {override}: expected key=value, e.g. trainer.zero_stage=3")
    try:
        return tuple(key.strip().split(".")), _value(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ExperimentError(f"override {short(override)}: the value is not YAML") from None


def set_value(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    at: Any = values
    for key in keys[:-1]:
        if isinstance(at, list) and key.isdigit() and int(key) < len(at):
            at = at[int(key)]
        elif isinstance(at, dict):
            if at.get(key) is None:
                at[key] = {}
            at = at[key]
        else:
            raise ExperimentError(f"override {override}: {key} is not below {'.'.join(keys[: keys.index(key)])}")
    if isinstance(at, list) and keys[-1].isdigit() and int(keys[-1]) < len(at):
        at[int(keys[-1])] = value
    elif isinstance(at, dict):
        at[keys[-1]] = value
    else:
        raise ExperimentError(f"override {override}: {'.'.join(keys[:-1])} holds no keys")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
