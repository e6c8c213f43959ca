"""Tables for the blocks of report.json that not every experiment has: for report.html and, as Markdown, for report.md.

Each is {"title", "caption", "heads", "rows", "notes", "findings"}, or None where the report has no such block.
"""

from collections.abc import Callable, Mapping
from typing import Any

from evaluation.report.render import MISSING, _markdown_table, _one_line, _percent, _points, _range

Block = dict[str, Any]


def blocks(report: dict[str, Any]) -> dict[str, Block | None]:
    """By the names that the template uses."""

    def own(name: str, make: Callable[..., Block], *more: Any) -> Block | None:
        return make(report[name], *more) if report.get(name) else None

    return {
        "wordings": own("wordings", _wordings),
        "lost": _lost(report),
        "merged": own("merged", _merged, report["arms"]),
        "mode_table": _modes(report),
        "choices": own("choices", _choices),
        "benchmarks": own("benchmarks", _benchmarks, list(report["arms"])),
        "conversation": own("conversation", _conversation),
    }


def markdown_blocks(report: dict[str, Any]) -> str:
    """The same tables for report.md; empty without any."""
    lines = []
    for block in blocks(report).values():
        if block:
            lines += [f"## {block['title']}", "", *(f"> {finding}\n" for finding in block["findings"]), f"{block['caption']}.", ""]
            lines += [*_markdown_table(block["heads"], [[_cell(cell) for cell in row] for row in block["rows"]]), ""]
            lines += [f"- {note}" for note in block["notes"]] + [""] * bool(block["notes"])
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _block(title: str, caption: str, heads: list[str], rows: list[list[str]], notes: list[str] | None = None, **more: Any) -> Block:
    return {"title": title, "caption": caption, "heads": heads, "rows": rows, "notes": notes or [], "findings": [], **more}


def _merged(block: dict[str, Any], arms: dict[str, Any]) -> Block:
    rows = []
    for name, told in block["arms"].items():
        arm = arms[name]
        sets = arm["sets"] if arm["status"] != MISSING else {}
        scores = [_interval(sets[of]["em"]) if of in sets else "" for of in ("test", "replay")]
        minus = [_difference(told["minus"].get(told[role])) for role in ("of", "instruct")]
        rows.append([name, told["in_words"], scores[0], *minus, scores[1]])
    notes = [f"`{name}`: {note}." for name, told in block["arms"].items() for note in told["notes"]]
    notes += [f"`{name}` is left out: {reason}." for name, reason in block["left_out"].items()]
    caption = "Test EM % with its difference to the model that was added to and to the instruct model, and replay EM %, 95 % intervals"
    heads = ["arm", "made of", "test EM", "− what was added to", "− instruct", "replay EM"]
    return _block("Merged models", caption, heads, rows, list(dict.fromkeys(notes)))


def _difference(interval: dict[str, float] | None) -> str:
    return f"{_points(interval['mean'])} ({_range(interval)})" if interval else ""


def _modes(report: dict[str, Any]) -> Block | None:
    arms = {name: arm["modes"] for name, arm in report["arms"].items() if arm["status"] != MISSING and arm.get("modes")}
    modes = list(dict.fromkeys(mode for of in arms.values() for mode, scores in of.items() if scores))
    if not set(modes) - {"closed"}:
        return None
    hits = any((of.get(mode) or {}).get("hit_rate") is not None for of in arms.values() for mode in modes)
    recovered = (report.get("bounds") or {}).get("recovered") or {}
    rows = [
        [
            name,
            *(_interval((of.get(mode) or {}).get("em")) for mode in modes),
            *([_hit_rate(of)] if hits else []),
            *([_interval((recovered.get(name) or {}).get("open"))] if recovered else []),
        ]
        for name, of in arms.items()
    ]
    heads = ["arm", *(m.replace("_", " ") for m in modes), *(["found"] if hits else []), *(["of the way to open"] if recovered else [])]
    notes = []
    for name, found in (report.get("adaptive") or {}).items():
        notes.append(
            f"`{name}` with retrieval only where it is unsure of itself: {_percent(found['em'])} % EM, looking up {_percent(found['retrieved'])} % "
            f"of the questions (never {_percent(found['closed'])}, always {_percent(found['always'])})."
        )
    if (known := report.get("known_before")) and known.get("share"):
        notes.append(f"The base answers {_percent(known['share'])} % of the test questions by itself.")
    caption = "EM by answer mode, %; found: how often the right document is among the passages; then the share of the way from base to open"
    return _block("Retrieval or training", caption, heads, rows, notes)


def _hit_rate(modes: Mapping[str, Any]) -> str:
    rates = [scores["hit_rate"] for scores in modes.values() if scores and scores.get("hit_rate") is not None]
    return _percent(rates[0]) if rates else ""


def _wordings(found: dict[str, Any]) -> Block:
    number = max(len(of["by_wording"]) for of in found.values())
    rows = []
    for arm, of in found.items():
        others = [_percent(one["mean"]) for one in of["by_wording"]]
        rows.append([arm, _interval(of["own"]), *others, *[""] * (number - len(others)), _interval(of["worst"]), _interval(of["all"])])
    heads = ["arm", "as trained", *(f"wording {n + 1}" for n in range(number)), "the worst", "in every wording"]
    asked = next(iter(found.values()))["questions"]
    notes = [
        f"{asked:,} test questions, each in its own words and in others, which no stage trains.",
        "The worst of several is low by luck too.",
    ]
    return _block("In other words", "Test EM, %, with 95 % intervals", heads, rows, notes)


def _lost(report: dict[str, Any]) -> Block | None:
    """report["lost"]: {arm: {reason: count of answers, or share}}."""
    lost = {name: block for name, block in (report.get("lost") or {}).items() if isinstance(block, Mapping)}
    reasons = list(dict.fromkeys(r for block in lost.values() for r, v in block.items() if isinstance(v, int | float)))
    if not reasons:
        return None
    rows = [[name, *(_count(block.get(reason)) for reason in reasons)] for name, block in lost.items()]
    notes = [
        "Wrong format: the right fact is in what was said, but not as it was asked for; wrong fact: it is not there.",
        *(
            f"`{name}` lost the format rather than the facts: {block['wrong_format']} of {block['lost']} lost answers still hold the right one."
            for name, block in lost.items()
            if block.get("lost") and block.get("wrong_format", 0) > block["lost"] / 2
        ),
    ]
    caption = "Older questions that the base knew, and how they were lost"
    return _block("Forgotten, or only the format?", caption, ["arm", *(r.replace("_", " ") for r in reasons)], rows, notes)


def _count(value: Any) -> str:
    """A count as it is, a share as per cent."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else _percent(value)


def _choices(block: dict[str, Any]) -> Block:
    rows = []
    for arm, modes in block["arms"].items():
        for mode, forms in modes.items():
            for form, result in forms.items():
                constant = result.get("minus_constant")
                rows.append(
                    [
                        arm,
                        mode,
                        form,
                        _interval(result["accuracy"]),
                        f"{_points(constant['mean'])} ({_range(constant)})" if constant else "",
                        _interval(result.get("clean")),
                        " ".join(f"{letter} {100 * share:.0f}" for letter, share in result["letters"].items()),
                    ]
                )
    rows += [[arm, MISSING, "", "", "", "", ""] for arm in block["missing"]]
    heads = ["arm", "mode", "form", "accuracy", "minus best letter", "not in training", "predicted letters, %"]
    notes = [f"`{arm}` is missing: {_one_line(reason)}" for arm, reason in block["missing"].items()]
    gold = next((r["gold"] for m in block["arms"].values() for f in m.values() for r in f.values() if "gold" in r), None)
    if gold:
        total = sum(gold.values())
        constants = ", ".join(f"{letter} {100 * count / total:.1f} % ({count:,})" for letter, count in gold.items())
        notes.append(f"Always giving one letter, as printed: {constants} of {total:,}.")
    leak = block["leakage"]
    notes.append(f"{leak['count']:,} of {block['questions']:,} exam questions ({100 * leak['share']:.1f} %) stand verbatim in training.")
    notes.append(
        "Printed: log-likelihood of the letter, options as in the source; shuffled: the same with the options in another order; text: "
        "log-likelihood of the option's text per byte. A score that is high in one form only is no knowledge."
    )
    caption = "Share of right answers, %, with 95 % intervals"
    return _block("Multiple choice", caption, heads, rows, notes, findings=block["findings"])


def _benchmarks(block: dict[str, Any], arms: list[str]) -> Block:
    rows = []
    for task, found in block["tasks"].items():
        cells = []
        for arm in arms:
            score, change = found["arms"].get(arm), found["change"].get(arm)
            tail = f" ({_points(change['mean'])}: {_range(change)})" if change else ""
            cells.append(f"{_percent(score['mean'])}{tail}" if score else MISSING)
        shots = "" if found["shots"] is None else str(found["shots"])
        rows.append([task, shots, *cells])
    lines: dict[str, list[str]] = {}
    for arm, of in block["missing"].items():
        for task, reason in of.items():
            lines.setdefault(f"`{task}` is missing: {_one_line(reason)}", []).append(f"`{arm}`")
    notes = [f"{text} ({', '.join(of)})" for text, of in lines.items()]
    if block["limit"]:
        notes.append(f"Only the first {block['limit']:,} questions of each task: a first look.")
    notes.append(f"Measured by lm-evaluation-harness {block['lm_eval']}.")
    caption = "Score, % (change against base in points: 95 % interval, paired over the questions)"
    return _block("General benchmarks", caption, ["task", "shots", *arms], rows, notes)


def _conversation(block: dict[str, Any]) -> Block:
    rows = [[name, _percent(found["ended"]), f"{found['tokens']:.0f}"] for name, found in block["arms"].items()]
    examples = [
        {"prompt": prompt, "answers": {name: found["answers"][i] for name, found in block["arms"].items()}}
        for i, prompt in enumerate(block["prompts"])
    ]
    notes = [f"`{arm}` is missing: {_one_line(reason)}" for arm, reason in block["missing"].items()]
    caption = "Answers that came to an end by themselves, %, and their mean length"
    return _block("Conversation", caption, ["arm", "ended", "tokens"], rows, notes, examples=examples)


def _interval(value: Mapping[str, float] | None) -> str:
    return f"{_percent(value['mean'])} ({_range(dict(value), '–')})" if value else ""
