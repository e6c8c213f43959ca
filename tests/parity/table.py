"""The whole matrix as the table in docs/models.md, a row a family."""

import json
import re
from collections import Counter, defaultdict
from typing import Any

from benchmarks.result_file import FOLDER
from tests.conftest import ROOT
from tests.parity.cells import TRAINED
from tests.parity.models import FAMILIES
from tests.parity.verdict import bounds

DOC = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
COLUMNS = [(precision, zero) for precision in ("fp32", "bf16") for zero in (0, 1, 2, 3)]
Line = dict[str, Any]


def rows(lines: list[Line]) -> list[dict[str, Any]]:
    """A family and a column each: how many cells of each verdict, the worst gradient, and what is refused for what reason."""
    figures = []
    for family in FAMILIES:
        for precision, zero in COLUMNS:
            cells = [x for x in lines if (x["family"], x["precision"], x["zero"]) == (family, precision, zero)]
            refused: dict[str, list[str]] = defaultdict(list)
            for x in cells:
                if x["verdict"] == "refused" and x["trained"] not in refused[x["why"]]:
                    refused[x["why"]].append(x["trained"])
            figures.append({
                "family": family, "precision": precision, "zero": zero, "verdicts": dict(Counter(x["verdict"] for x in cells)),
                "worst_gradient": max((x["figures"].get("gradient", 0.0) for x in cells), default=0.0),
                "one_item_rows": sorted({x["told"]["one_item"] for x in cells if x["told"]}), "refused": refused,
            })  # fmt: skip
    return figures


def text(result: dict[str, Any]) -> str:
    notes: list[str] = []
    lines = [
        "| family | rows | " + " | ".join(f"{precision} ZeRO {zero}" for precision, zero in COLUMNS) + " |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for family in FAMILIES:
        of_family = [row for row in result["figures"] if row["family"] == family]
        kinds = {one for row in of_family for one in row["one_item_rows"]}
        packed = " or ".join("one item each" if one else "packed" for one in sorted(kinds)) or "–"
        lines.append(f"| {family} | {packed} | " + " | ".join(_cell(row, notes) for row in of_family) + " |")
    about, verdicts = result["environment"], result["verdicts"]
    counted = ", ".join(f"{verdicts[name]:,} {name}" for name in ("equal", "bounded", "refused", "DIFFERENT", "error") if name in verdicts)
    bound = bounds("bf16")
    return "\n".join([
        *lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, start=1)), "",
        f"`make parity`: {result['cells']:,} cells: {counted}; last on {about['date']} at {about['commit']}, {about['cpus']} cores, {about['minutes']} minutes. "
        f"Bounds in bf16: {bound.gradient:.2g} of the gradient, {bound.norm:.2g} of its norm, {bound.loss:.2g} of the first loss (`tests/parity/verdict.py` derives them).",
    ])  # fmt: skip


def _cell(row: dict[str, Any], notes: list[str]) -> str:
    """ "equal", "bounded, refused¹: dora", "refused²", "**DIFFERENT: 3 of 40**"."""
    verdicts, total = row["verdicts"], sum(row["verdicts"].values())
    parts = [f"**{name}: {verdicts[name]} of {total}**" for name in ("DIFFERENT", "error") if name in verdicts]
    parts += [name for name in ("equal", "bounded") if name in verdicts]
    for why, kinds in row["refused"].items():
        if why not in notes:
            notes.append(why)
        what = "" if len(kinds) == len(TRAINED) else f": {', '.join(kinds)}"
        parts.append(f"refused[^{notes.index(why) + 1}]{what}".replace("[^", " [").strip())
    return ", ".join(parts) or "–"


def write(result: dict[str, Any]) -> None:
    (FOLDER / "parity.json").write_text(json.dumps(result, indent=1) + "\n")
    made = text(result)
    print(made)
    page = DOC.read_text()
    DOC.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{made}\n{END}", page, flags=re.DOTALL))
