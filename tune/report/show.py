"""The search in the terminal: a live table of what runs and what is best so far; plain lines where there is no terminal."""

import io
import json
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from console import err, say
from tune.config import SearchConfig
from tune.deciding.ledger import FINISHED, Row, ranked
from tune.deciding.space import in_words, number, short_names

MOST_LINES = 12
_LIVE_EVERY_S = 1.0


def metric_text(search: SearchConfig, score: dict[str, float]) -> str:
    """ "54.2 (48–60)" of shares times 100; of a loss as it is."""
    if search.metric == "document_loss":
        return f"{score['mean']:.3f}"
    return f"{100 * score['mean']:.1f} ({100 * score['low']:.0f}–{100 * score['high']:.0f})"


def unit(search: SearchConfig) -> str:
    return "nats" if search.metric == "document_loss" else "%"


def trial_table(search: SearchConfig, rows: list[Row], most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Heads and cells, the best first, then those that were stopped, refused, or raised."""
    names = short_names(list(search.space))
    heads = ["trial", *names.values(), f"validation {search.metric}, {unit(search)}", "at", "steps", "seconds", "state"]
    best = ranked(rows, search.direction)
    rest = [row for row in rows if row not in best]
    sign = 1 if search.direction == "max" else -1
    rest.sort(key=lambda row: (not row.finished, -sign * row.last.score["mean"] if row.last else float("inf")))
    cells = []
    for row in [*best, *rest][:most]:
        last = row.last
        cells.append(
            [
                row.id,
                *(number(row.values[path]) if path in row.values else "" for path in names),
                metric_text(search, last.score) if last else "",
                f"{100 * last.share:g} %" if last else "",
                f"{row.steps:,}",
                f"{row.seconds:,.1f}",
                row.state + (f": {row.reason}" if row.reason else ""),
            ]
        )
    return heads, cells


def terminal_table(search: SearchConfig, rows: list[Row], most: int | None = None) -> Table:
    heads, cells = trial_table(search, rows, most)
    table = Table(box=None, pad_edge=False)
    for n, head in enumerate(heads):
        last = n == len(heads) - 1
        table.add_column(head, justify="left" if n == 0 or last else "right", no_wrap=not last, overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))
    return table


def in_text(table: Table, width: int) -> str:
    """As lines of text: rich would squeeze a table into a pipe's 80 characters."""
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().rstrip("\n")


class Show:
    """poll() twice a second or so, inside `with`."""

    def __init__(self, folder: Path, search: SearchConfig, total: int) -> None:
        self._folder, self._search, self._total = folder, search, total
        self._told: set[tuple[str, float]] = set()
        self._states: dict[str, str] = {}
        self._drawn = 0.0
        self._live = Live(console=err, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) if err.is_terminal else None

    def __enter__(self) -> "Show":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def known(self, rows: list[Row]) -> None:
        """What an earlier start has told already."""
        self._told |= {(row.id, rung.share) for row in rows for rung in row.rungs}
        self._states |= {row.id: row.state for row in rows}

    def poll(self, rows: list[Row]) -> None:
        """A line for every new look and every end; on a terminal the table as well."""
        for row in rows:
            for rung in row.rungs:
                if (row.id, rung.share) not in self._told:
                    self._told.add((row.id, rung.share))
                    where = "end" if rung.share == 1 else f"{100 * rung.share:g} % of its schedule"
                    ended = sum(other.finished for other in rows)
                    say(
                        f"{row.id} ({in_words(row.values)}), {where}: {self._search.metric} {metric_text(self._search, rung.score)} "
                        f"{unit(self._search)}; {ended} of {self._total} trials have ended"
                    )
            if self._states.get(row.id) != row.state and row.state in FINISHED and row.state != "done":
                say(f"{row.id} ({in_words(row.values)}) {row.state}: {row.reason}")
            self._states[row.id] = row.state
        if self._live and time.monotonic() - self._drawn > _LIVE_EVERY_S:
            self._drawn = time.monotonic()
            self._live.update(self._picture(rows), refresh=True)

    def _picture(self, rows: list[Row]) -> Group:
        counts = {state: sum(row.state == state for row in rows) for state in ("running", *FINISHED)}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        hours = sum(row.seconds for row in rows) / 3600
        head = Text(
            f"{sum(row.finished for row in rows)} of {self._total} trials: {said or 'starting'}; {hours:.2f} hours of training and exams"
        )
        lines = [Text(f"  {row.id} {in_words(row.values)}: {self._place(row)}", style="dim") for row in rows if row.state == "running"]
        ended = [row for row in rows if row.state != "running"]
        return Group(head, *lines, *([terminal_table(self._search, ended, MOST_LINES)] if ended else []))

    def _place(self, row: Row) -> str:
        try:
            latest = json.loads((self._folder / "search" / "work" / row.id / "progress.json").read_text())
        except (OSError, ValueError):
            return "starting"
        return f"step {latest['step'] + 1:,} of {latest['steps']:,}, loss {latest['loss']:.3f}, rate {latest['rate']:.2g}, gradient {latest['grad_norm']:.2g}"
