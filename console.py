"""What people see: progress on stderr, results on stdout, library chatter in a log file; errors in one line."""

import argparse
import errno
import math
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from types import FrameType
from typing import Any

if _lacking := [name for name in ("rich", "pydantic", "yaml", "numpy") if find_spec(name) is None]:
    # Before anything of ours or theirs is imported: a Python beside the environment would end in a traceback.
    sys.stderr.write(f"error: {sys.executable}: has no {_lacking[0]}; run .venv/bin/python, which `make setup` makes, or activate .venv\n")
    sys.exit(2)

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 75
"""Stopped on SIGTERM with everything saved: sysexits' EX_TEMPFAIL, "try again later"."""


class UserError(ValueError):
    """Bad input: one line that names the place, the reason and the remedy. A command exits with code 2."""


class RunError(RuntimeError):
    """Work that failed although the input was good: one line, exit code 1; the log holds the rest."""


class StoppedByRequest(Exception):
    """A clean end before the end, asked for by SIGTERM: exit code 75."""


# Re-pointed by chatter_to(), so that progress stays visible while libraries write to the log.
err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
_FEWEST_CHARACTERS = 8  # TOKENIZERS_PARALLELISM=false is no secret


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret; a path to one (…_PATH, …_FILE) is none."""
    return bool(_SECRET.search(name)) and not name.upper().endswith(("_PATH", "_FILE"))


def secrets() -> list[str]:
    """Values of environment variables whose names look like secrets, if they are long enough to be some."""
    named = ((name, value) for name, value in os.environ.items() if is_secret_name(name))
    return sorted((value for _, value in named if len(value) >= _FEWEST_CHARACTERS), key=len, reverse=True)


_IN_ADDRESS = re.compile(
    r"(?<=://)[^\s/@]*:[^\s/@]+(?=@)|(?<=[?&;])[\w.-]*(?:secret|passw|token|key|signature|sig)[\w.-]*=[^\s&;'\"]+", re.IGNORECASE
)
"""A user's password before the host of an address, or a value behind ? or & whose name says that it is secret."""


def masked(text: str) -> str:
    """Without the environment's secrets and those inside addresses (a mirror's s3://key:secret@bucket)."""
    for secret in secrets():
        text = text.replace(secret, "***")
    return _IN_ADDRESS.sub(lambda found: re.sub(r"(?<=[:=]).+", "***", found[0], count=1), text)


def say(message: str) -> None:
    """One plain line of progress, without the secrets that an error may have quoted."""
    message = masked(message)
    err.print(message, markup=False, soft_wrap=True)


_FRAME = re.compile(r'^\s+File ".+", line \d+')


def error_line(error: BaseException) -> str:
    """`Type: first line` of what went wrong; of an error that another process raised, of the exception inside; of our own errors, their line.

    Not the last line of the text: torch ends "not on this device" with 45 lines of back ends.
    """
    if inner := _inner(error):
        return error_line(inner)
    raised = raised_in(str(error))
    first = raised or _first([line for line in str(error).splitlines() if line.strip()])
    if raised or isinstance(error, UserError | RunError):
        return first or type(error).__name__
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def raised_in(text: str) -> str | None:
    """The exception's first line (`Type: …`) behind the last traceback in a text; None where there is no traceback."""
    lines = text.splitlines()
    frames = [n for n, line in enumerate(lines) if _FRAME.match(line)]
    behind = list(dropwhile(lambda line: not line.strip() or line[0].isspace(), lines[frames[-1] + 1 :])) if frames else []
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", _first(behind)) if behind else None


def _first(lines: Sequence[str]) -> str:
    """The first line; with the second where that alone says what is wrong (pydantic's "1 validation error for X")."""
    said = [line.strip() for line in lines[:2]]
    return ": ".join(said if said and re.search(r"\d+ validation errors? for \S+$", said[0]) else said[:1])


def _inner(error: BaseException) -> BaseException | None:
    """What a remote error carries: Ray's `cause`, of Ray Train's failures the lowest rank's. Ray Data's wrapper holds nothing but text."""
    failures = getattr(error, "worker_failures", None) or {}
    held = [failures[min(failures)]] if failures else [getattr(error, name, None) for name in ("cause", "_base_exc", "controller_failure")]
    return next((one for one in held if isinstance(one, BaseException) and type(one).__name__ != "UserCodeException"), None)


def tell(line: str) -> None:
    """One line of a result on stdout for people, not wrapped and with brackets as they are."""
    out.print(line, markup=False, soft_wrap=True)


def write_result(text: str) -> None:
    """One result on stdout, as it is: what `--json` or a pipe reads."""
    out.file.write(text + "\n")
    out.file.flush()


@contextmanager
def chatter_to(log: Path) -> Iterator[None]:
    """Sends everything that libraries and child processes print to `log`; ours still reaches the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        with (
            log.open("ab") as file,
            os.fdopen(saved[0], "w", closefd=False) as real_out,
            os.fdopen(saved[1], "w", closefd=False) as real_err,
        ):
            before = out._file, err._file  # not .file: that is whatever stdout is now, and would stay so for ever
            out.file, err.file = real_out, real_err
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(saved[0], 1)
                os.dup2(saved[1], 2)
                out.file, err.file = before  # type: ignore[assignment]
    finally:
        for descriptor in saved:
            os.close(descriptor)
        mask(log)


def mask(log: Path) -> None:
    """Overwrites secrets that a library has printed, in place: others may still write to the file's end."""
    if not log.stat().st_size:
        return
    hidden = [secret.encode() for secret in secrets()]
    with log.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for secret in hidden:
            while (at := content.find(secret)) >= 0:
                content[at : at + len(secret)] = b"*" * len(secret)
        pattern = re.compile(_IN_ADDRESS.pattern.encode(), re.IGNORECASE)
        for found in list(pattern.finditer(content)):
            begin = found.start() + 1 + re.search(rb"[:=]", found[0]).start()  # type: ignore[union-attr]
            content[begin : found.end()] = b"*" * (found.end() - begin)


class Command(argparse.ArgumentParser):
    """The arguments of a command; description and examples are shown as they are written, those of its sub-commands as well."""

    def __init__(self, prog: str | None = None, **more: Any) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def takes_experiment(self, example: str, name: str = "file", about: str = "the experiment's YAML file") -> None:
        """X.yaml and overrides. `example`: an override that makes sense here."""
        self.add_argument(name, metavar="X.yaml", help=about)
        self.takes_overrides(example)

    def takes_overrides(self, example: str) -> None:
        self.add_argument("overrides", nargs="*", metavar="a.b=c", help=f"values to change in the experiment, e.g. {example}")

    def run(self, argv: list[str] | None) -> int | None:
        """Calls the `run` of the sub-command that argv names. Overrides may stand behind options, which sub-parsers cannot tell from their own."""
        args, rest = self.parse_known_args(argv)
        if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            args.overrides += rest
        return args.run(args)  # type: ignore[no-any-return]


def whole(least: int) -> Callable[[str], int]:
    """What an argument of a command must be, for argparse: a whole number, `least` or more."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return int(text)

    return number


def finite(text: str) -> float:
    """The same for any number but infinities and NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected a number")
    return value


def positive(text: str) -> float:
    """The same for a number above 0."""
    if (value := finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def duration(seconds: float) -> str:
    """40 s, 12 min, 3.4 h: as exact as a guess is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Note(ProgressColumn):
    def render(self, task: object) -> Text:
        return Text(str(getattr(task, "fields", {}).get("note", "")), style="dim")


def progress() -> Progress:
    """A progress bar on stderr; update(task, note="…") shows a phrase at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _Note(),
        console=err,
        redirect_stdout=False,  # on a terminal rich would catch what libraries print, and show it after all
        redirect_stderr=False,
    )


_REMEDIES = {
    errno.EACCES: "give another folder (runs=…, --out …), or the rights to write there",
    errno.EPERM: "give another folder (runs=…, --out …), or the rights to write there",
    errno.EROFS: "give a folder that can be written to (runs=…, --out …)",
    errno.ENOTDIR: "a file is in the way; give another folder",
    errno.EISDIR: "a folder is in the way; give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "mend the path",
    errno.EEXIST: "a file is in the way; give another name",
    errno.ELOOP: "mend the link",
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _system_line(error: OSError) -> tuple[str, int]:
    """One line and the exit code for what the file system refused."""
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    reason = error.strerror or str(error).splitlines()[0]
    if error.errno in _FULL:
        return (
            f"{place}{reason}; free space there (`python -m trainer gc` lists what a run no longer needs); what is committed stays",
            EXIT_FAILED,
        )
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}{reason}{f'; {remedy}' if remedy else ''}", EXIT_BAD_INPUT if remedy else EXIT_FAILED


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as Ctrl-C: that alone ends Ray's waiting at once. Any other exception comes out when the wait is over, as a SystemError."""

    came = False
    """What a library raises anew for it is a plain KeyboardInterrupt."""


def _stop(signum: int, frame: FrameType | None) -> None:
    _Terminated.came = True
    raise _Terminated


def run_child(command: list[str]) -> int:
    """A command of ours in a process of its own; its exit code. SIGTERM is passed on, Ctrl-C the terminal gives to both, and the child's own end is waited for."""
    interrupts: list[int] = []
    with subprocess.Popen(command) as child:
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, frame: child.send_signal(signum)),
            signal.SIGINT: signal.signal(signal.SIGINT, lambda signum, frame: interrupts.append(signum)),
        }
        try:
            code = child.wait()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if interrupts and code in (0, -signal.SIGINT):  # it had just come to its end; what would follow does not
        raise KeyboardInterrupt
    return EXIT_STOPPED if code == -signal.SIGTERM else code


def door(main: Callable[[list[str] | None], int | None]) -> None:
    """Runs a command: exit code 2 and one line for bad input, 1 for failed work, 130 for Ctrl-C, 75 for an end on SIGTERM.

    STUDYHALL_TRACEBACK=1 shows the traceback as well.
    """
    signal.signal(signal.SIGTERM, _stop)  # ends as an exception does: engines, clusters and locks are let go on the way
    try:
        sys.exit(main(None) or 0)
    except KeyboardInterrupt:
        told, code = ("stopped as asked", EXIT_STOPPED) if _Terminated.came else ("interrupted", EXIT_INTERRUPTED)
        say(f"{told}; what is committed stays, and the same command goes on from there")
        sys.exit(code)
    except StoppedByRequest as stop:
        say(str(stop))
        sys.exit(EXIT_STOPPED)
    except (UserError, RunError) as error:
        if os.environ.get("STUDYHALL_TRACEBACK"):
            raise
        say(f"error: {error}")
        sys.exit(EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if os.environ.get("STUDYHALL_TRACEBACK") or error.errno is None:
            raise
        line, code = _system_line(error)
        say(f"error: {line}")
        sys.exit(code)
