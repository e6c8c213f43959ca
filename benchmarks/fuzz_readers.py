"""Broken inputs for every reader: python -m benchmarks.fuzz_readers --inputs 10000

Each input is a good file with random edits, or random rows of nearly the right shape; it is made from (reader, number) alone, so a crash
can be looked at again with --only reader:number. What must hold: nothing but a UserError of one line, rows read = used + refused, every
record usable, and of formats with a row a line as many rows as lines. Writes benchmarks/results/fuzz.json; exit code 1 after a crash.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.fuzz_inputs import ENDING, EXPERIMENT, GOOD_FILES, HOLDS, MAKERS, TABLES, edited, parts_of
from console import Command, UserError
from data.build.confined import Confined
from data.build.documents.extract import extract
from data.build.making.chunks import cut
from data.build.pages import read_pages
from data.build.walk import find_files
from data.config import DataConfig
from data.load import load_corpus
from data.records import ChoiceQuestion, Corpus, Document, Question, Refusal
from experiment import load_experiment

RESULT = Path(__file__).parent / "results" / "fuzz.json"


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
    parser = Command("python -m benchmarks.fuzz_readers", description=__doc__)
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
