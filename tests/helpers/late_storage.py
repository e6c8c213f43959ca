"""A shared file system that shows a file late: for some seconds after another process has made it, `stat` and `open` know nothing of it (NFS's cached
"no such file"). What this process has made itself, and what was there before it started, it sees at once.

In this process by install(seconds); in every Python process of a run by PYTHONPATH=<folder with a sitecustomize.py that calls it>.
"""

import builtins
import errno
import io
import os
import time
from pathlib import Path
from typing import Any

_WATCHED = ("manifest.json", "rank-", "progress.json", "arms.json", ".npz", "tokens.bin")
"""Parts of names; not what libraries write past Python, for it would be hidden from its own process."""


def install(late_s: float) -> None:
    own: set[str] = set()
    installed = time.time()
    stat, replace, rename, open_, os_open = os.stat, os.replace, os.rename, builtins.open, os.open

    def name_of(path: Any) -> str | None:
        if isinstance(path, int):
            return None
        name = os.path.abspath(os.fspath(path))
        return name if isinstance(name, str) and any(part in os.path.basename(name) for part in _WATCHED) else None

    def look(path: Any) -> None:
        name = name_of(path)
        if name is None or name in own:
            return
        try:
            made = stat(name).st_ctime
        except OSError:
            return
        if made > installed and time.time() - made < late_s:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def late_stat(path: Any, *args: Any, **kwargs: Any) -> Any:
        look(path)
        return stat(path, *args, **kwargs)

    def late_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax"):
            if name := name_of(file):
                own.add(name)
        else:
            look(file)
        return open_(file, mode, *args, **kwargs)

    def late_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            if name := name_of(path):
                own.add(name)
        else:
            look(path)
        return os_open(path, flags, *args, **kwargs)

    def moved(act: Any) -> Any:
        def move(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            if name := name_of(target):
                own.add(name)
            return act(source, target, *args, **kwargs)

        return move

    os.stat, os.open = late_stat, late_os_open
    os.replace, os.rename = moved(replace), moved(rename)
    builtins.open = io.open = late_open  # type: ignore[assignment]


def sitecustomize(folder: Path, late_s: float) -> str:
    """A PYTHONPATH under which every process that starts has such storage."""
    root = Path(__file__).resolve().parent.parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from tests.helpers import late_storage; late_storage.install({late_s})\n"
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)
