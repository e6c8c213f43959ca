"""An experiment's file as YAML that knows its lines, and overrides of its values; what the values mean is experiment.py's."""

import copy
import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from console import UserError

_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 3e-5 (no dot) and 2.5e10 (no sign) for texts; people, and YAML 1.2, mean numbers. And `on`, where it is a key (teach.on), for a truth."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


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


def plain(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "missing"
    return message[0].lower() + message[1:] + ("" if error["type"] == "value_error" else f", not {short(error['input'])}")


def place_of(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Without pydantic's names of the types that a value may have (trainer.num_workers.constrained-int)."""
    kept = tuple(part for part in loc if not re.match(r"constrained-|[a-z-]+\[", str(part)))
    return kept[:-1] if len(kept) > 1 and kept[-1] in ("int", "float", "str", "bool") else kept


def shown_key(part: Any) -> str:
    """A part of a key's path: a file may hold any text as a key."""
    text = str(part)
    return text if text.isprintable() and len(text) <= 80 else short(text)


def suggestion(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` over `old`; mappings in both are merged in turn, everything else is replaced."""
    both = {key: merged(old[key], value) for key, value in new.items() if isinstance(value, dict) and isinstance(old.get(key), dict)}
    return {**old, **new, **both}


def changed_values(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of an experiment's values with others in some places, not yet judged; UserError where there is no such place."""
    changed = copy.deepcopy(values)
    for key, value in changes.items():
        try:
            set_value(changed, tuple(key.split(".")), copy.deepcopy(value), key)
        except ExperimentError as error:
            raise UserError(str(error).removeprefix("override ")) from None
    return changed


def keys_beside(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys that the model at the parent of `loc` knows."""
    annotation: Any = model
    for key in loc[:-1]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(key)].annotation
        else:  # list[X] or dict[str, X]: step into X
            annotation = get_args(annotation)[-1]
        models = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if models and not str(annotation).startswith(("list", "dict")):
            annotation = models[0]  # Optional[X]
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
