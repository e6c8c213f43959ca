"""The report for people: one sentence, one table, a few answers, and how to read them."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from data.corpus.golds import unreachable_in_words

MISSING = "missing"

HOW_TO_READ = """\
- **Memorised or extractable?** A low *document loss* with a high *train EM* and a low *test EM* means: the new documents are
  memorised, but the model cannot answer about them. Test EM is the score that counts: its questions were never trained on.
- **EM**: the answer equals a gold answer after SQuAD's normalisation. **Recall**: a gold answer stands in it. **F1**, **ROUGE-L**:
  words in common. **Replay EM**: questions from before; lower than the base's means forgotten. **Ended**: answers that
  came to an end by themselves. **Other words**: test EM in the worst of the wordings that were never trained.
- **Intervals** hold 95 %, from resampling documents, because questions of one document stand or fall together. With fewer than
  some 20 documents they are too narrow, and so they are at exactly 0 or 100 %. They cover the choice of exam documents, not the
  luck of a training seed.
- **Differences** are paired: the same questions, the same resampled documents. The best arm was picked by this exam, so its lead
  is a little flattered.
"""


def summary(report: dict[str, Any]) -> str:
    """The result in a sentence or two of plain words."""
    arms, differences = report["arms"], report["differences"]
    missing = [f"`{name}`" for name, arm in arms.items() if arm["status"] == MISSING]
    tail = f" No score for {', '.join(missing)}." if missing else ""
    best, reference = differences["best"], differences["compare_to"]
    if best is None:
        return f"No arm has a score yet.{tail}"
    text = f"`{best}` answers {_em(arms[best])} % of the {arms[best]['sets']['test']['n']} exam questions exactly"
    leads = differences["pairs"][best]
    others = {name: lead for name, lead in leads.items() if name != "base"} or leads
    if not others:
        return f"{text}.{tail}"
    if reference in leads:
        other, lead = reference, leads[reference]
    else:  # the best is the reference itself, or there is none: the runner-up
        other, lead = min(others.items(), key=lambda item: item[1]["mean"])
    interval = f"95 % interval {_range(lead)}"
    if arms[best]["sets"]["test"]["documents"] < 2:
        verdict = "the questions are of one document, so nothing is said about others"
    elif lead["low"] <= 0 <= lead["high"]:
        verdict = f"the exam cannot tell them apart (difference {_points(lead['mean'])} points, {interval})"
    else:
        verdict = f"{_points(lead['mean'])} points more ({interval})"
    named = f"`{other}`" if other == reference else f"the next best, `{other}`,"
    return f"{text}; {named} {_em(arms[other])} %: {verdict}.{_in_other_words(report, best)}{tail}"


def _in_other_words(report: dict[str, Any], best: str) -> str:
    """How much of the headline is bound to the words of its questions."""
    found = (report.get("wordings") or {}).get(best)
    if not found:
        return ""
    worst, number = _percent(found["worst"]["mean"]), len(found["by_wording"])
    said = f"in {number} other wordings" if number > 1 else "in another wording"
    return (
        f" Asked {said} it answers {worst} %{' in the worst' if number > 1 else ''}, and {_percent(found['all']['mean'])} % in every one."
    )


def table_cells(report: dict[str, Any], left_out: tuple[str, ...] = ()) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the comparison, as text; one row per arm, in the experiment's order. Columns without any value are left out too."""
    to = report["differences"]["compare_to"]
    heads = [
        "arm",
        "test EM %",
        "recall",
        "F1",
        "ROUGE-L",
        f"EM − {to}" if to else "",
        "other words",
        "train EM",
        "replay EM",
        "doc. loss",
        "ended",
        "steps",
    ]
    words = report.get("wordings") or {}
    rows = [_cells(name, arm, report["differences"]["to"].get(name), words.get(name)) for name, arm in report["arms"].items()]
    keep = [i for i, head in enumerate(heads) if head and head not in left_out and any(row[i] for row in rows)]
    return [heads[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _cells(name: str, arm: dict[str, Any], gap: dict[str, float] | None, words: dict[str, Any] | None) -> list[str]:
    steps = "" if arm["steps"] is None else f"{arm['steps']:,}"
    if arm["status"] == MISSING:
        return [name, MISSING, *[""] * 9, steps]
    test, loss = arm["sets"]["test"], arm["document_loss"]
    return [
        name,
        f"{_em(arm)} ({_range(test['em'], '–')})",
        *[_percent(test[metric]["mean"]) for metric in ("recall", "f1", "rouge_l")],
        f"{_points(gap['mean'])} ({_range(gap)})" if gap else "",
        _percent(words["worst"]["mean"]) if words else "",
        *[_percent(arm["sets"][s]["em"]["mean"]) if s in arm["sets"] else "" for s in ("train", "replay")],
        f"{loss['mean']:.3f}" if loss else "",
        _percent(test["ended"]),
        steps,
    ]


def terminal_table(report: dict[str, Any], width: int) -> Table:
    """What fits `width` columns; report.md has the rest."""
    heads, rows = table_cells(report, ("F1", "ended", "steps") if width >= 95 else ("F1", "ended", "steps", "recall", "ROUGE-L"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column("\n".join(head.rsplit(" ", 1)), justify="right" if i else "left", no_wrap=True, style=None if i else "bold")
    for row in rows:
        table.add_row(*row)
    return table


def baseline_lines(report: dict[str, Any], quoted: Callable[[str], str] = str) -> list[str]:
    """What needs no knowledge, and what the exam gives away; `quoted`: how texts of data and models are written."""
    lines = [f"Warning: {told['in_words']}."] if (told := report.get("mixed")) else []
    for key, words in (("commonest_train_answer", "the commonest train answer"), ("commonest_exam_answer", "the commonest exam answer")):
        if constant := report["baselines"][key]:
            lines.append(f"Always saying {words} (“{quoted(constant['answer'])}”): {_percent(constant['em'])} % EM.")
    overlap = report["overlap"]
    shared = f"{overlap['also_in_training']} of {overlap['exam_questions']} exam questions also stand in training."
    lines.append(shared + _clean_scores(report))
    if overlap["with_document"]:
        lines.append(f"{overlap['answer_in_document']} of {overlap['with_document']} answers stand in their document word for word.")
    if golds := unreachable_in_words(report.get("unreachable")):
        lines.append(f"{quoted(golds)}.")
    return lines


def _clean_scores(report: dict[str, Any]) -> str:
    clean = {name: arm["test_without_overlap"] for name, arm in report["arms"].items() if arm.get("test_without_overlap")}
    listed = ", ".join(f"`{name}` {_percent(rows['em']['mean'])} %" for name, rows in clean.items())
    return f" Test EM without them: {listed}." if clean else ""


def use_lines(report: dict[str, Any]) -> list[str]:
    """Commands that use the best arm; none where no arm that was trained here has a score."""
    best = report["differences"]["best"]
    if best is None or not report["arms"][best]["stage"] or not report.get("folder"):
        return []
    hf = shlex.quote(str(Path(report["folder"], report["arms"][best]["hf"])))
    return [f'python -m evaluation ask {hf} "a question"', f"vllm serve {hf}"]


def markdown(report: dict[str, Any], more: Sequence[str] = ()) -> str:
    """report.md; `more`: further sections."""
    heads, rows = table_cells(report)
    lines = [f"# {_one_line(report['experiment'])}", "", summary(report), "", *_markdown_table(heads, rows), ""]
    lines += [f"- {line}" for line in baseline_lines(report, _one_line)]
    lines += [f"- `{name}` is missing: {_one_line(arm['reason'])}" for name, arm in report["arms"].items() if arm["status"] == MISSING]
    lines += ["", "## How to read it", HOW_TO_READ]
    if pairs := report["differences"]["pairs"]:
        lines += ["## Every arm against every other (test EM, points: row minus column, 95 % interval)", ""]
        cells = [
            [ours, *(f"{_points(d[other]['mean'])} ({_range(d[other])})" if other in d else "" for other in pairs)]
            for ours, d in pairs.items()
        ]
        lines += [*_markdown_table(["", *pairs], cells), ""]
    if report["samples"]:
        lines += ["## Some exam questions, drawn at random", ""]
        lines += [line for item in report["samples"] for line in _sample_lines(item)]
    made = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if v)
    lines += [line for section in more if section for line in (section.strip(), "")]
    if commands := use_lines(report):
        lines += [f"## Use `{report['differences']['best']}`", "```", *commands, "```", ""]
    return "\n".join([*lines, "## Made with", f"Seed {report['seed']}; {made}.", ""])


def _sample_lines(item: dict[str, Any]) -> list[str]:
    gold = " / ".join(item["gold"])
    answers = [f"- {'✓' if a['em'] else '✗'} `{name}`: {_one_line(a['answer']) or '(nothing)'}" for name, a in item["answers"].items()]
    return [f"**{_one_line(item['question'])}** Gold: {_one_line(gold)}", "", *answers, ""]


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---"] + ["---:"] * (len(heads) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (heads, align, *rows)]


def _one_line(text: str) -> str:
    """Model output inside Markdown: no line breaks, no markup."""
    flat = " ".join(text.split())
    flat = flat if len(flat) <= 200 else flat[:200] + "…"
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in flat)


def _em(arm: dict[str, Any]) -> str:
    return _percent(arm["sets"]["test"]["em"]["mean"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float, decimals: int = 1) -> str:
    """Percentage points, with a true minus sign and no minus zero."""
    return f"{round(100 * difference, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _range(interval: dict[str, float], between: str = " to ") -> str:
    """Its ends in points; whole ones where it is wide."""
    decimals = 0 if interval["high"] - interval["low"] >= 0.05 else 1
    return f"{_points(interval['low'], decimals)}{between}{_points(interval['high'], decimals)}"
