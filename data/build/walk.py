"""Which files of a folder are read, in the order of their names; and why the others are not. Follows no link, opens no device."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathspec import GitIgnoreSpec

from console import UserError
from data.ground.formats import SAVED_AS, format_of
from data.ground.strict_json import MAX_ROW_BYTES
from data.records import Refusal
from data.sources.raw_rows import excerpt

DocumentFormat = Literal["text", "markdown", "html", "pdf", "docx", "pptx", "ipynb", "epub", "code", "table"]

MAX_FILE_BYTES: dict[DocumentFormat, int] = {
    "text": MAX_ROW_BYTES, "markdown": MAX_ROW_BYTES, "html": MAX_ROW_BYTES, "code": MAX_ROW_BYTES, "pdf": 256 << 20, "docx": 256 << 20,
    "pptx": 256 << 20, "ipynb": 64 << 20, "epub": 256 << 20, "table": 1 << 50,
}  # fmt: skip
"""Tables are read row by row, with the readers' own limit on a row; everything else is held while it is read."""

CODE = {
    ".py": "python", ".pyi": "python", ".js": "js", ".jsx": "js", ".mjs": "js", ".cjs": "js", ".ts": "ts", ".tsx": "ts", ".go": "go",
    ".rs": "rust", ".java": "java", ".kt": "kotlin", ".kts": "kotlin", ".scala": "scala", ".swift": "swift", ".rb": "ruby", ".php": "php",
    ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hh": "cpp", ".hpp": "cpp", ".cu": "cpp", ".cuh": "cpp",
    ".cs": "csharp", ".lua": "lua", ".hs": "haskell", ".ex": "elixir", ".exs": "elixir", ".ps1": "powershell", ".r": "r", ".R": "r",
    ".sol": "sol", ".proto": "proto", ".cbl": "cobol", ".cob": "cobol", ".bas": "visualbasic6", ".tex": "latex", ".rst": "rst",
    # without a splitter of their own: cut at empty lines and lines
    ".sh": "shell", ".bash": "shell", ".pl": "perl", ".pm": "perl", ".sql": "sql", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml",
}  # fmt: skip
"""Ending → language, as the splitter calls it."""
_PROSE: dict[str, DocumentFormat] = {
    "": "text", ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html",
    ".xhtml": "html", ".pdf": "pdf", ".docx": "docx", ".docm": "docx", ".pptx": "pptx", ".ipynb": "ipynb", ".epub": "epub",
}  # fmt: skip
_SAVED_AS = {
    ".doc": ".docx", ".odt": ".docx", ".rtf": ".docx", ".pages": ".docx", ".ppt": ".pptx", ".odp": ".pptx", ".key": ".pptx",
    ".mobi": ".epub", ".azw3": ".epub",
}  # fmt: skip
"""What no reader knows and its own program can save anew."""
_SNIFFED_BYTES = 8192
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Found:
    """One file to read. `name` is its path below the folder, with slashes."""

    path: Path
    name: str
    format: DocumentFormat
    language: str | None
    """Of code; None elsewhere."""
    size: int


def find_files(folder: Path, include: list[str], exclude: list[str], skip: Path | None = None) -> Iterator[Found | Refusal]:
    """Every file below `folder`: to be read (Found), or not (Refusal; `by_rule` where that is meant and no fault).

    include, exclude: patterns as in .gitignore; with `include` only what it matches is read. What a .gitignore in the folder or
    below names, hidden files and folders, links and binary files are left out; a folder that is left out is one Refusal and is not
    entered. `skip`: a folder that is not looked into (where the result is written).
    Raises UserError where `folder` is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    rules = _Rules(GitIgnoreSpec.from_lines(include) if include else None, GitIgnoreSpec.from_lines(exclude))
    yield from _below(folder, rules, _identity(skip.stat()) if skip and skip.is_dir() else None)


@dataclass(frozen=True, slots=True)
class _Rules:
    include: GitIgnoreSpec | None
    exclude: GitIgnoreSpec


@dataclass(frozen=True, slots=True)
class _Folder:
    prefix: str
    """Its path below the root, with a slash at its end; the root's is empty."""
    ignores: list[tuple[str, GitIgnoreSpec]]
    """Of the folders above: (prefix, what its .gitignore says)."""


def _below(root: Path, rules: _Rules, skip: tuple[int, int] | None) -> Iterator[Found | Refusal]:
    """Depth first, without recursion: folders may be nested as deep as a path is long."""
    stack = [_entries(root, _Folder("", []), rules, skip)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, _Folder):
            stack.append(_entries(root, entry, rules, skip))
        else:
            yield entry


def _entries(root: Path, below: _Folder, rules: _Rules, skip: tuple[int, int] | None) -> Iterator[Found | Refusal | _Folder]:
    folder = root / below.prefix
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        own = _own_ignores(folder)
    except OSError as error:
        yield Refusal(excerpt(below.prefix, 300) or ".", f"cannot be read: {error.strerror}")
        return
    ignores = [*below.ignores, (below.prefix, own)] if own else below.ignores
    for entry in entries:
        name = below.prefix + entry.name
        try:
            why = _left_out(root, entry, name, rules, ignores)
            is_folder = entry.is_dir(follow_symlinks=False)
            if why:
                yield Refusal(excerpt(name, 300) + ("/" if is_folder else ""), why[0], by_rule=why[1])
            elif not is_folder:
                yield _file(entry, name, rules)
            elif skip is None or _identity(entry.stat(follow_symlinks=False)) != skip:
                yield _Folder(name + "/", ignores)
        except OSError as error:
            yield Refusal(excerpt(name, 300), f"cannot be read: {error.strerror}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _own_ignores(folder: Path) -> GitIgnoreSpec | None:
    path = folder / ".gitignore"
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 20:
        return None
    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())


def _left_out(
    root: Path, entry: "os.DirEntry[str]", name: str, rules: _Rules, ignores: list[tuple[str, GitIgnoreSpec]]
) -> tuple[str, bool] | None:
    """(reason, whether by a stated rule), or None for what is looked at."""
    if not entry.name.isprintable() or _not_utf8(entry.name):
        return "a name that is no printable UTF-8", False
    if entry.name.startswith("."):
        return "hidden (its name begins with a dot)", True
    is_folder = entry.is_dir(follow_symlinks=False)
    shown = name + "/" if is_folder else name
    if rules.exclude.match_file(shown):
        return "excluded by --exclude", True
    for prefix, spec in reversed(ignores):  # the nearest .gitignore that has an opinion decides, as in git
        verdict = spec.check_file(shown.removeprefix(prefix)).include
        if verdict is not None:
            if verdict:
                return "named in .gitignore", True
            break
    if entry.is_symlink():
        return _link(root, Path(entry.path))
    return None


def _link(root: Path, path: Path) -> tuple[str, bool]:
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return "a symbolic link that leads nowhere or to itself", False
    if inside:
        return "a symbolic link: its target is read under its own name", True
    return "a symbolic link that leads out of the folder; copy the file into it", False


def _not_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _file(entry: "os.DirEntry[str]", name: str, rules: _Rules) -> Found | Refusal:
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):  # a FIFO would wait for ever
        return Refusal(name, "not a regular file")
    if rules.include is not None and not rules.include.match_file(name):
        return Refusal(name, "not named by --include", by_rule=True)
    suffix = Path(name).suffix
    language = CODE.get(suffix)
    kind: DocumentFormat | None = "code" if language else "table" if format_of(name) else _PROSE.get(suffix.lower())
    if kind is None:
        ending = suffix.lower()
        remedy = f"save it as {_SAVED_AS[ending]}" if ending in _SAVED_AS else SAVED_AS.get(ending)
        return Refusal(name, f"no reader for {excerpt(suffix, 20)}" + (f"; {remedy}" if remedy else ""), by_rule=not remedy)
    if status.st_size == 0:
        return Refusal(name, "empty", by_rule=True)
    if status.st_size > MAX_FILE_BYTES[kind]:
        return Refusal(name, f"larger than {MAX_FILE_BYTES[kind] >> 20} MB; split it, or make it a table (.jsonl)")
    if kind in ("text", "markdown", "code") and _is_binary(Path(entry.path)):
        return Refusal(name, "binary", by_rule=True)
    return Found(Path(entry.path), name, kind, language, status.st_size)


def _is_binary(path: Path) -> bool:
    """As git tells: a zero byte near the beginning."""
    with open_inside(path) as file:
        start = file.read(_SNIFFED_BYTES)
    return b"\0" in start and not start.startswith(_UTF16)


def open_inside(path: Path):  # type: ignore[no-untyped-def]
    """Opens a file that was found, for bytes. OSError where it has become a link meanwhile."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
