"""Broken inputs for every reader: python -m benchmarks.fuzz_readers --inputs 10000

Each input is a good file with random edits, or random rows of nearly the right shape; it is made from (reader, number) alone, so a crash
can be looked at again with --only reader:number. What must hold: nothing but a UserError of one line, rows read = used + refused, every
record usable, and of formats with a row a line as many rows as lines. Writes benchmarks/results/fuzz.json; exit code 1 after a crash.
"""

import argparse
import functools
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from console import UserError
from data.build.chunks import cut
from data.build.confined import Confined
from data.build.extract import extract
from data.build.pages import read_pages
from data.build.walk import find_files
from data.config import DataConfig
from data.load import load_corpus
from data.records import ChoiceQuestion, Corpus, Document, Question, Refusal
from experiment import load_experiment
from tests.data.build import office_files

RESULT = Path(__file__).parent / "results" / "fuzz.json"
KEYS = [
    "id",
    "text",
    "question",
    "answer",
    "answers",
    "doc_id",
    "choices",
    "type",
    "document",
    "evidence_text",
    "qa_pairs",
    "title",
    "level",
]
SCALARS: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), float("inf"), "", " ", "a", "b", "doc", "qna", "A", "</s>", "<T - Wikipedia 1> x", "\ud83d", "é", "\0", "x" * 300, 10**30,
]  # fmt: skip
PIECES = [
    b"\xff", b"\xed\xa0\xbd", b"\xef\xbb\xbf", b"\0", b"\n", b"\r", b'"', b"'", b",", b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud83d", b"NaN", b"null",
    b"-", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"\t", b"- ", b"? ", b"|", b"#", b"%",
]  # fmt: skip
EXPERIMENT = b"""name: x
data: {bios: {train_people: 5}}
model:
  tiny: {hidden_size: 96}
dials: {batch_items: 8}
arms:
  pit: {preset: pit, dials: {epochs_pit: 2}}
  own:
    stages:
      - {mix: {train_documents: 1}, epochs: 1, batch_items: 4, rate: 1e-3}
"""


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth < 3 and kind < 0.15:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 3 and kind < 0.35:
        return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return rng.choice(SCALARS)


def good_rows(format: str) -> list[dict[str, Any]]:
    if format == "choices":
        return [{"question": f"q{n}", "choices": ["x", "y"], "answer": "B"} for n in range(3)]
    if format == "interleaved":
        return [{"type": "doc", "id": n, "document": f"text {n}"} for n in range(2)] + [{"type": "qna", "question": "q", "answer": "a"}]
    if format == "wiki_pages":
        return [{"evidence_text": f"<T - Wikipedia {n}> text", "qa_pairs": [{"text": "q", "output": f"a{n}"}]} for n in range(2)]
    return [{"id": str(n), "text": f"text {n}", "question": f"q{n}", "answer": "a"} for n in range(3)]


def rows_of(rng: random.Random, format: str) -> list[Any]:
    """Good rows of which some have other values, or none of our rows at all."""
    rows: list[Any] = [dict(row) for row in good_rows(format)]
    for _ in range(rng.randrange(4)):
        row = rng.choice(rows)
        if rng.random() < 0.2:
            rows[rows.index(row)] = value(rng)
        elif isinstance(row, dict):
            row[rng.choice([*row, *KEYS])] = value(rng)
    return rows


def edited(rng: random.Random, content: bytes) -> bytes:
    """Up to three edits: a piece put in or over, a slice taken out or doubled, a cut, a flipped bit."""
    changed = bytearray(content)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at : at + rng.randrange(3)] = rng.choice(PIECES)
        elif kind == 1:
            del changed[at : at + rng.randrange(12)]
        elif kind == 2:
            changed[at:at] = changed[max(0, at - 20) : at]
        elif kind == 3 and rng.random() < 0.3:
            del changed[at:]
        elif changed and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def table(rng: random.Random, rows: list[Any]) -> pa.Table:
    """Columns of the first kind of value that each key has; what does not fit becomes null."""
    dicts = [row for row in rows if isinstance(row, dict)] or [{}]
    columns = {}
    for name in dict.fromkeys(key for row in dicts for key in row):
        cells = [row.get(name) for row in dicts]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, OverflowError, UnicodeError):
            raw = [repr(cell).encode() + b"\xff" * rng.randrange(2) for cell in cells]
            columns[name] = pa.array(raw, pa.binary()).view(pa.string())
    return pa.table(columns)


def text_file(path: Path, rng: random.Random, format: str) -> bytes:
    rows = rows_of(rng, format)
    if format in ("csv", "csv.gz"):
        mark = rng.choice(",,,;\t|")
        lines = [mark.join(("id", "text", "question", "answers"))] + [
            mark.join(map(str, row.values())) if isinstance(row, dict) else str(row) for row in rows
        ]
        content = "\n".join(lines).encode("utf-16" if rng.random() < 0.05 else "utf-8", "surrogatepass")
    elif format in ("jsonl", "jsonl.gz") or (format == "json" and rng.random() < 0.3):
        content = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    else:
        content = json.dumps(rows, indent=rng.choice([None, 0])).encode("utf-8", "surrogatepass")
    content = edited(rng, content)
    if format.endswith(".gz"):
        packed = gzip.compress(content, 1)
        path.write_bytes(edited(rng, packed) if rng.random() < 0.3 else packed)
    else:
        path.write_bytes(content)
    return content


def parquet_file(path: Path, rng: random.Random, format: str) -> bytes:
    sink = pa.BufferOutputStream()
    made, options = table(rng, rows_of(rng, format)), {"compression": rng.choice(["NONE", "SNAPPY"]), "use_dictionary": rng.random() < 0.5}
    try:
        pq.write_table(made, sink, **options)
    except pa.ArrowNotImplementedError:  # Parquet has no struct without fields
        pq.write_table(made.select([field.name for field in made.schema if pa.types.is_string(field.type)]), sink, **options)
    content = edited(rng, sink.getvalue().to_pybytes())
    path.write_bytes(content)
    return content


def workbook(path: Path, rng: random.Random, format: str) -> bytes:
    rows = [row for row in rows_of(rng, format) if isinstance(row, dict)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell if isinstance(cell, int | float | str | None) else json.dumps(cell) for cell in map(row.get, names)] for row in rows]
    plain = [[re.sub(r"[\x00-\x1f\ud800-\udfff]", "", cell) if isinstance(cell, str) else cell for cell in row] for row in cells]
    sheets = {"A": [names, *plain], **({"B": plain} if rng.random() < 0.1 else {})}
    content = edited_archive(rng, office_files.xlsx(sheets))
    path.write_bytes(content)
    return content


def dataset_folder(path: Path, rng: random.Random, format: str) -> bytes:
    path.mkdir(exist_ok=True)
    made = table(rng, rows_of(rng, format))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    state: dict[str, Any] = {"_data_files": [{"filename": "d.arrow"}], "_fingerprint": "0", "_format_kwargs": {}, "_split": None}
    state |= {"_format_columns": None, "_format_type": None, "_output_all_columns": False}
    which = rng.randrange(3)
    files = {"d.arrow": sink.getvalue().to_pybytes(), "state.json": json.dumps(state).encode(), "dataset_info.json": b"{}"}
    name = list(files)[which]
    files[name] = edited(rng, files[name])
    for name, content in files.items():
        (path / name).write_bytes(content)
    return files["d.arrow"]


MAKERS: dict[str, Callable[[Path, random.Random, str], bytes]] = {
    "jsonl": text_file,
    "csv": text_file,
    "interleaved": text_file,
    "wiki_pages": text_file,
    "choices": text_file,
    "json": text_file,
    "jsonl.gz": text_file,
    "csv.gz": text_file,
    "xlsx": workbook,
    "parquet": parquet_file,
    "huggingface": dataset_folder,
}
HOLDS = {"interleaved": ["both", "questions", "documents"], "wiki_pages": ["both", "questions", "documents"], "choices": ["choices"]}
TABLES = ["documents", "questions", "choices"]


def try_reader(folder: Path, format: str, rng: random.Random) -> str:
    """ "read" or "refused"; an AssertionError or anything but UserError is a crash."""
    name = "x.gz" if format.endswith(".gz") else "x"
    content = MAKERS[format](folder / name, rng, format)
    holds = rng.choice(HOLDS.get(format, TABLES))
    source = {"path": name, "split": rng.choice(["train", "test"]), "holds": holds, "format": format.removesuffix(".gz")}
    source["numbers"] = rng.choice(["refuse", "text"])
    values = {"root": str(folder), "sources": [source], "bad_rows": rng.choice(["fail", "quarantine"]), "bad_rows_limit": 1.0}
    try:
        corpus = load_corpus(DataConfig.model_validate(values), 0, folder / "refused.jsonl")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, "not one line"
        str(error).encode("utf-8")
        return "refused"
    check_account(corpus, format, content)
    return "read"


def check_account(corpus: Corpus, format: str, content: bytes) -> None:
    [intake] = corpus.intakes
    assert intake.rows_read == intake.rows_used + len(intake.refused), "rows do not add up"
    if format == "jsonl":
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert intake.rows_read == sum(bool(line.strip()) for line in lines), "a line is lost"
    for part in corpus.parts.values():
        for record in [*part.documents, *part.questions, *part.choices]:
            for text in texts(record):
                assert text and text.strip() == text, "an empty text"
                text.encode("utf-8")


def texts(record: Document | Question | ChoiceQuestion) -> list[str]:
    if isinstance(record, Document):
        return [record.text, record.id]
    return [record.question, record.id, *(record.answers if isinstance(record, Question) else record.choices)]


def try_experiment(folder: Path, _: str, rng: random.Random) -> str:
    (folder / "x.yaml").write_bytes(edited(rng, edited(rng, EXPERIMENT)))
    overrides = [
        f"{rng.choice(['seed', 'arms.pit.preset', 'data.bios', 'trainer.zero_stage', 'a..b', ''])}={rng.choice(['1', '[', '*a', '{a: 1}', ''])}"
    ]
    try:
        load_experiment(folder / "x.yaml", overrides if rng.random() < 0.2 else [])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, f"not one line: {error!a}"
        return "refused"
    return "read"


def edited_archive(rng: random.Random, good: bytes) -> bytes:
    """A zip archive with its bytes edited, or some of its parts."""
    if rng.random() < 0.3:
        return edited(rng, good)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.randrange(3)):
        name = rng.choice(list(parts))
        parts[name] = edited(rng, bytes(parts[name]))  # type: ignore[arg-type]
    if rng.random() < 0.2:
        parts.pop(rng.choice(list(parts)))
    return office_files.zipped(parts)


def parts_of(format: str, rng: random.Random) -> bytes:
    """A good file for data build, edited."""
    good = GOOD_FILES[format]()
    return edited_archive(rng, good) if good.startswith(b"PK") else edited(rng, good)


class InThisProcess(Confined):
    """The parser itself: what kills it is to be seen here."""

    def read(self, format: str, path: Path) -> dict[str, Any]:
        return extract(format, str(path))


def try_page(folder: Path, format: str, rng: random.Random) -> str:
    """ "read" or "refused": a file of a folder that data build reads, and its documents."""
    path = folder / "in" / f"x.{ENDING.get(format, format)}"
    path.parent.mkdir()
    path.write_bytes(parts_of(format, rng))
    outcome = "refused"
    for found in find_files(path.parent, [], []):
        for page in [found] if isinstance(found, Refusal) else read_pages(found, path.parent, InThisProcess(), {}):
            if isinstance(page, Refusal):
                assert "\n" not in str(page) and len(str(page)) < 1500, "not one line"
                continue
            outcome = "read"
            assert page.title is None or (0 < len(page.title) <= 120 and "\n" not in page.title), f"a title {page.title!a}"
            for document in cut(page, 200, page.language):
                assert document.text.strip(), "an empty document"
                json.dumps(document.text).encode()
                document.text.encode("utf-8")
    return outcome


ENDING = {"markdown": "md", "text": "txt", "code": "py", "table": "jsonl"}
CELLS: list[tuple[str, Any]] = [("markdown", ["# Tides\n", "High."]), ("code", "def tide():\n    return 3\n")]
PAGE = """<html><head><meta charset="utf-8"><title>Cranes</title></head><body><nav>Menu</nav><form><h1>Cranes</h1><p>10<sup>30</sup> H<sub>2</sub>O
<table><tr><th rowspan=2>a<th colspan=2>b<tr><td>1<td>2</table><pre>    x = 1\n```</pre><ul><li>one<li>two</ul><aside>x</aside></form></body></html>"""
GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "html": PAGE.encode,
    "markdown": lambda: (
        "---\ntitle: >-\n  Cranes\ntags: [a, b]\n---\n# Cranes\n\n" + "words and\n\n```py\n# x\n    y\n```\n\n" * 12
    ).encode(),
    "text": lambda: ("Cranes\n\n" + "They lift forty tonnes. " * 30).encode(),
    "code": lambda: ("class A:\n" + "    def f(self):\n        return 1\n\n" * 20).encode(),
    "table": lambda: b"".join(json.dumps({"body": f"text {n} " * 9, "title": f"T{n}"}).encode() + b"\n" for n in range(3)),
    "docx": lambda: office_files.docx(office_files.paragraph("Cranes", "Title") + office_files.paragraph("They lift.")),
    "pptx": functools.cache(lambda: office_files.pptx([("Cranes", "They lift."), ("More", "x")])),
    "ipynb": lambda: office_files.ipynb(CELLS),
    "epub": lambda: office_files.epub({"a": "<h1>One</h1><p>It lifts.</p>", "b": "<p>Two</p>"}),
}


TARGETS: dict[str, Callable[[Path, str, random.Random], str]] = {
    **dict.fromkeys(MAKERS, try_reader),
    **dict.fromkeys(GOOD_FILES, try_page),
    "experiment": try_experiment,
}


def in_a_child(target: str, numbers: range, limit_s: float) -> dict[str, Any]:
    """What run returns; a reader that is killed by a signal is a crash too."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        at, result = Path(folder, "at"), Path(folder, "result")
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # "warning: no rows in it", ten thousand times
            warnings.simplefilter("ignore")
            result.write_text(json.dumps(run(target, numbers, limit_s, at)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if result.exists():
            return json.loads(result.read_text())  # type: ignore[no-any-return]
        number = int(at.read_text())
        said = [f"{target}:{number}: killed (status {status})"]
        return {"inputs": number + 1, "read": 0, "refused": 0, "crashes": 1, "seconds": 0.0, "first": said}


def run(target: str, numbers: range, limit_s: float, at: Path) -> dict[str, Any]:
    """Counts of what became of the inputs, and the first crashes; `at` holds the number at work."""
    counts = {"read": 0, "refused": 0, "crashes": 0}
    first: list[str] = []
    start = time.monotonic()
    for number in numbers:
        at.write_text(str(number))
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            try:
                counts[TARGETS[target](Path(folder), target, random.Random(f"{target}:{number}"))] += 1
            except Exception as error:  # whatever it is, it is what we look for
                counts["crashes"] += 1
                if len(first) < 5:
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    first.append(
                        f"{target}:{number}: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:150]}"
                    )
        if time.monotonic() - start > limit_s:
            break
    return {"inputs": sum(counts.values()), **counts, "seconds": round(time.monotonic() - start, 1), "first": first}


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.fuzz_readers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="of each reader")
    parser.add_argument("--reader", choices=list(TARGETS), action="append", help="only these; the results of the others stay")
    parser.add_argument("--only", metavar="READER:NUMBER", help="one input, with its traceback")
    parser.add_argument("--limit-s", type=float, default=600, help="longest time for one reader")
    arguments = parser.parse_args()
    if arguments.only:
        target, _, number = arguments.only.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            print(TARGETS[target](Path(folder), target, random.Random(f"{target}:{number}")))
        return 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10).stdout.strip()
    told = {"date": datetime.now(UTC).date().isoformat(), "commit": commit}
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    crashes = 0
    for target in arguments.reader or TARGETS:
        report[target] = in_a_child(target, range(arguments.inputs), arguments.limit_s) | told
        crashes += report[target]["crashes"]
        print(target, json.dumps(report[target]), flush=True)
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
