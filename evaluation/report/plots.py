"""The report's plots as inline SVG: drawn by matplotlib, coloured by the page (CSS variables), so one drawing serves light and dark.

Every plot is small (460 px wide): two stand side by side on a desk, one fills a phone, and text stays readable on both.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH = 4.6
"""Inches of 72 SVG points; the page scales them to its column."""
_INK, _MUTED, _LINE, _PAPER = "#0a0c00", "#0a0c01", "#0a0c02", "#0a0c03"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)", _PAPER: "var(--card)"}
COLOURS = 8
"""--arm-0 … in the page's style sheet; further arms begin anew with another marker."""
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Plot:
    title: str
    alt: str
    """What the plot shows, in words, with its numbers where they are few."""
    svg: Markup
    wide: bool = False


def arm_colour(number: int) -> str:
    return f"#0a0b{number % COLOURS:02x}"


def intervals(
    title: str, values: Mapping[str, Mapping[str, float]], colours: Mapping[str, int], unit: str = "%", zero: bool = False
) -> Plot:
    """A dot with its interval per name, first on top. Values are shares; shown times 100. `zero`: a difference, with a line at 0."""
    figure, axes = _figure(0.9 + 0.36 * len(values))
    for row, (name, v) in enumerate(values.items()):
        colour = arm_colour(colours.get(name, 0))
        axes.plot([100 * v["low"], 100 * v["high"]], [row, row], color=colour, lw=3, solid_capstyle="round", alpha=0.55)
        axes.plot([100 * v["mean"]], [row], "o", color=colour, ms=8)
        axes.annotate(
            f"{100 * v['mean']:.1f}".replace("-", "−"),
            (100 * v["mean"], row),
            (0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            color=_INK,
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.8)
    axes.grid(axis="x", color=_LINE)
    axes.set_xlabel(unit)
    if zero:
        axes.axvline(0, color=_MUTED, lw=1)
    else:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    said = "; ".join(f"{n} {100 * v['mean']:.1f} ({100 * v['low']:.1f} to {100 * v['high']:.1f})" for n, v in values.items())
    return _plot(figure, title, f"{title}, {unit}, with 95 % intervals: {said}.")


def grouped(
    title: str, groups: Mapping[str, Mapping[str, Mapping[str, float]]], colours: Mapping[str, int] | None = None, unit: str = "%"
) -> Plot:
    """Bars with whiskers: one group a name (row), one bar an inner name. Values as in `intervals`; low and high may be missing.

    `colours` are given where the inner names are arms.
    """
    kinds = list(dict.fromkeys(kind for bars in groups.values() for kind in bars))
    height = 0.8 / max(1, len(kinds))
    figure, axes = _figure(1.2 + (0.2 + 0.19 * len(kinds)) * len(groups))
    for k, kind in enumerate(kinds):
        rows = [(g, bars[kind]) for g, bars in enumerate(groups.values()) if kind in bars]
        places = [g - 0.4 + height * (k + 0.5) for g, _ in rows]
        means = [100 * v["mean"] for _, v in rows]
        axes.barh(places, means, height=height * 0.86, color=arm_colour((colours or {}).get(kind, k + 1)), label=kind)
        for place, (_, v) in zip(places, rows, strict=True):
            if "low" in v and "high" in v:
                axes.plot([100 * v["low"], 100 * v["high"]], [place, place], color=_INK, lw=1.2)
            edge = max(100 * v["mean"], 100 * v.get("high", v["mean"]))
            axes.annotate(
                f"{100 * v['mean']:.1f}", (edge, place), (4, 0), textcoords="offset points", va="center", fontsize=9.5, color=_INK
            )
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=_LINE)
    axes.set_xlabel(unit)
    _legend(figure, axes)
    said = "; ".join(f"{g}: " + ", ".join(f"{k} {100 * v['mean']:.1f}" for k, v in bars.items()) for g, bars in groups.items())
    return _plot(figure, title, f"{title}, {unit}. {said}.")


def against(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], colours: Mapping[str, int], x: str, y: str, marked: bool = True
) -> Plot:
    """One line of (x, y) points per arm; `marked`: the points are measurements."""
    figure, axes = _figure(3.1)
    for name, points in lines.items():
        n = colours.get(name, 0)
        axes.plot([p[0] for p in points], [p[1] for p in points], **_style(n), ms=7 if marked else 0, lw=1.6, label=name)
    _labelled(axes, x, y)
    _legend(figure, axes)
    ends = "; ".join(f"{name} {points[-1][1]:.3g} at {points[-1][0]:,.0f}" for name, points in lines.items() if points)
    return _plot(figure, title, f"{title}. At the end: {ends}.")


def frontier(
    title: str, values: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], colours: Mapping[str, int], x: str, y: str
) -> Plot:
    """A point with both intervals per name; stepped through those that no other beats in one without being worse in the other."""
    figure, axes = _figure(3.4)
    best = not_beaten({name: (old["mean"], new["mean"]) for name, (old, new) in values.items()})
    edge = sorted((100 * values[name][0]["mean"], 100 * values[name][1]["mean"]) for name in best)
    axes.step([0.0, *(old for old, _ in edge)], [edge[0][1], *(new for _, new in edge)], where="pre", color=_MUTED, lw=1, zorder=1)
    for name, of in values.items():
        (old, old_low, old_high), (new, new_low, new_high) = ([100 * v[key] for key in ("mean", "low", "high")] for v in of)
        n = colours.get(name, 0)
        axes.plot([old_low, old_high], [new, new], color=arm_colour(n), lw=1.2, alpha=0.55)
        axes.plot([old, old], [new_low, new_high], color=arm_colour(n), lw=1.2, alpha=0.55)
        axes.plot([old], [new], **{**_style(n), "ls": "none"}, ms=7, label=name)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _labelled(axes, x, y)
    _legend(figure, axes)
    points = "; ".join(f"{name} {100 * new['mean']:.1f} and {100 * old['mean']:.1f}" for name, (old, new) in values.items())
    return _plot(figure, title, f"{title}, {y} and {x}: {points}. Beaten by none: {', '.join(best)}.")


def not_beaten(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other equals or passes in both values and passes in one."""

    def beaten(a: tuple[float, float]) -> bool:
        return any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points.values())

    return [name for name, point in points.items() if not beaten(point)]


def curves(title: str, lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]], colours: Mapping[str, int], y: str, log: bool) -> Plot:
    """One curve per arm in pieces, a piece a stage; a small mark where a stage ends."""
    figure, axes = _figure(3.1)
    for name, pieces in lines.items():
        n = colours.get(name, 0)
        label: str | None = name
        for piece in (p for p in pieces if p):
            xs, ys = [x for x, _ in piece], [v for _, v in piece]
            axes.plot(xs, ys, color=arm_colour(n), ls=_DASHES[(n // COLOURS) % 4], lw=1.3, label=label)
            axes.plot(xs[-1:], ys[-1:], _MARKERS[n % 8], color=arm_colour(n), ms=4)
            label = None
    if log:
        axes.set_yscale("log")
    _labelled(axes, "step, all stages in sequence", y)
    _legend(figure, axes)
    ends = "; ".join(f"{name} {pieces[-1][-1][1]:.3g}" for name, pieces in lines.items() if pieces and pieces[-1])
    return _plot(figure, title, f"{title} over the steps of all stages. At the end: {ends}.")


def stage_tree(title: str, boxes: Sequence[tuple[int, float, str, int | None]], columns: int, rows: int) -> Plot:
    """Boxes (column, row, text, number of the parent box) from left to right, joined to their parents; dark where an arm ends."""
    lines = max(text.count("\n") + 1 for _, _, text, _ in boxes)
    figure = Figure(figsize=(2.6 * columns, (0.2 * lines + 0.32) * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(rows - 0.5, -0.5)
    width, height = 0.84, (0.2 * lines + 0.12) / (0.2 * lines + 0.32)
    parents = {parent for *_, parent in boxes}
    for number, (column, row, text, parent) in enumerate(boxes):
        left = column + 0.02
        if parent is not None:
            start, above = boxes[parent][0] + 0.02 + width, boxes[parent][1]
            middle = (start + left) / 2
            axes.plot([start, middle, middle, left], [above, above, row, row], color=_MUTED, lw=1.3, zorder=1)
        edge = _MUTED if number in parents else _INK
        axes.add_patch(Rectangle((left, row - height / 2), width, height, facecolor=_PAPER, edgecolor=edge, lw=1.2, zorder=2))
        axes.text(left + 0.03, row, text, va="center", fontsize=11, color=_INK, zorder=3, linespacing=1.25)
    said = "; ".join(text.replace("\n", ", ") for _, _, text, _ in boxes)
    return _plot(figure, title, f"{title}: {said}.", wide=True)


def _style(number: int) -> dict[str, Any]:
    return {"color": arm_colour(number), "marker": _MARKERS[number % 8], "ls": _DASHES[(number // COLOURS) % 4]}


def _figure(height: float) -> tuple[Figure, Axes]:
    with rc_context(_RC):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    return figure, axes


def _labelled(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", fontsize=10.5, color=_MUTED)
    axes.grid(axis="y", color=_LINE)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _short(value: float, _: int | None = None) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 2 if max(map(len, labels)) > 14 else 3
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=10,
            labelcolor=_INK,
            handlelength=1.4,
            columnspacing=1.2,
        )


_RC: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def _plot(figure: Figure, title: str, alt: str, wide: bool = False) -> Plot:
    buffer = io.StringIO()
    name = re.sub(r"\W+", "-", title.lower())
    with rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return Plot(title, alt, Markup(_inline(buffer.getvalue(), name, alt)), wide)


def _inline(svg: str, name: str, alt: str) -> str:
    """Of matplotlib's file the drawing alone: no XML head, ids of its own, the page's colours and font, and its words for those who cannot see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|href="#|url\(#)', partial(_prefixed, name=name), svg)
    svg = re.sub(r"#0a0b0([0-7])", r"var(--arm-\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
    head = re.search(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', svg, flags=re.S)
    assert head, "matplotlib writes a viewBox"
    return f'<svg viewBox="{head[1]}" role="img" aria-label="{escape(alt)}">{svg[head.end() :]}'


def _prefixed(match: re.Match[str], name: str) -> str:
    return f"{match[1]}{name}-"
