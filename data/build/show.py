"""python -m data show DIR: what a build has made, read from its manifest; samples, and whether a file has changed since."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from rich.table import Table

from console import UserError, out, tell, whole, write_result
from data.build.making.figures import RUN
from data.build.making.questions import ORDER
from data.build.output import FORMAT, MANIFEST
from data.build.parquet_file import read_rows, record_file
from data.ground.contents import sha256_of
from data.sources.raw_rows import excerpt


def add_show(commands: Any) -> None:
    show = commands.add_parser("show", help="what a build has made", description="Prints a build's account, splits, lengths and samples.")
    show.add_argument("folder", type=Path, metavar="DIR", help="that python -m data build has written")
    show.add_argument("--samples", type=whole(0), default=3, metavar="N", help="questions of each split (3)")
    show.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    show.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> None:
    about = read_manifest(args.folder)
    samples = {split: _sample(record_file(args.folder, split, "questions"), args.samples, about["seed"]) for split in ORDER}
    changed = changed_files(args.folder, about)
    if args.json:
        write_result(json.dumps({**about, "samples": samples, "changed": changed}, ensure_ascii=False, indent=1))
        return
    print_account(about["account"])
    print_splits(about["splits"], about["levels"])
    print_figures(about.get("figures", {}))
    lengths = about["statistics"]["length"]
    tell(
        f"documents: {', '.join(f'{name} {value:,}' for name, value in lengths.items())} characters; {_counted(about['statistics'], 'formats')}"
    )
    tell(
        f"questions by {about['model']}, prompts {about['prompts']['name']}: {about['tokens']['prompt']:,} tokens read, {about['tokens']['answer']:,} written"
    )
    for split, rows in samples.items():
        for row in rows:
            tell(f"{split}: {excerpt(row['question'], 160)} – {excerpt(row['answers'][0], 80)}")
    for name in changed:
        tell(f"changed since it was built: {name}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UserError where there is none that this version reads."""
    try:
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder / MANIFEST}: cannot be read: no finished build; run python -m data build … --out {folder}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST}: another format than {FORMAT}; build it again with this version")
    return about


def changed_files(folder: Path, about: dict[str, Any]) -> list[str]:
    """Names of files that are not what the manifest says, or gone."""

    def differs(name: str, sha256: str) -> bool:
        try:
            return sha256_of(folder / name) != sha256
        except OSError:
            return True

    return [name for name, known in about["files"].items() if differs(name, known["sha256"])]


def _sample(path: Path, number: int, seed: int) -> list[dict[str, Any]]:
    """Some rows of a file, by reservoir; none where it is gone or cannot be read (it is named as changed)."""
    kept: list[dict[str, Any]] = []
    rng = random.Random(seed)
    try:
        for position, row in enumerate(read_rows(path)):
            if position < number:
                kept.append(row)
            elif (at := rng.randint(0, position)) < number:
                kept[at] = row
    except pa.ArrowException:
        return []
    return kept


def print_account(account: dict[str, Any]) -> None:
    table = Table("", "came", "used", "left out", title="Account")
    for what, row in account.items():
        left = "\n".join(f"{number:,} {reason}" for reason, number in row["left_out"].items())
        table.add_row(what, f"{row['came']:,}", f"{row['used']:,}", left)
    out.print(table, markup=False)


def print_splits(counts: dict[str, dict[str, int]], levels: dict[str, dict[str, int]]) -> None:
    table = Table("split", "documents", "rewrites", "questions", "asked", "levels", title="Splits")
    for split in ORDER:
        shown = ", ".join(f"{level} {number:,}" for level, number in levels[split].items())
        numbers = [f"{counts[split].get(what, 0):,}" for what in ("documents", "rewrites", "questions", "asked")]
        table.add_row(split, *numbers, shown)
    out.print(table, markup=False)


def print_figures(figures: dict[str, dict[str, Any]]) -> None:
    """Nothing for a build without methods."""
    if not figures:
        return
    table = Table("form", "texts", "tokens", "written", "zlib", "new", "copied", "exam", title="What was written")
    table.columns[0].min_width = 18
    for name, row in figures.items():
        counts = [f"{row[what]:,}" for what in ("texts", "tokens", "written")]
        table.add_row(
            name.replace("/", " "), *counts, f"{row['compression']:.2f}", *(f"{row[what]:.0%}" for what in ("distinct_4", "copied", "exam"))
        )
    out.print(table, markup=False)
    hit = figures["documents"]["exam"]
    tell(
        f"exam: share of the exam questions' runs of {RUN} words that stand in a text (in the documents themselves {hit:.0%}); no text holds a question"
    )


def _counted(statistics: dict[str, Any], what: str) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in statistics[what].items())
