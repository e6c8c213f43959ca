"""Memory and time of reading a folder of 10,000 files (200 MB) to documents: python -m benchmarks.build_folder [--files N]

Made files of four formats (Markdown, text, Python, HTML), a tenth of them copies and a tenth copies with a few words changed. Read in a
process of its own, as `python -m data build` reads before it asks a model. Goal: less than 2 GiB of growth above the imports.
Writes benchmarks/results/build_folder.json.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.corpus_memory import peak_mib, vocabulary

from benchmarks.result_file import write_result_file

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_FILES, BYTES_EACH = 10_000, 20_500
GOAL_GIB = 2.0
_KINDS = (".md", ".txt", ".py", ".html")


def make_folder(folder: Path, files: int) -> int:
    """Returns the bytes written. Ten in a hundred files are copies, and ten nearly."""
    words, total = vocabulary(), 0
    for number in range(files):
        twin = number - 7 if number % 10 in (8, 9) else number  # 8: word for word, 9: with every fiftieth word another
        rng = random.Random(twin)
        text = _body(rng, words, near=number % 10 == 9)
        kind = _KINDS[twin % 4]
        path = folder / f"part{number // 500}" / f"file{number}{kind}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<html><title>Page {twin}</title><body>{text}</body></html>" if kind == ".html" else text)
        total += path.stat().st_size
    return total


def _body(rng: random.Random, words: list[str], near: bool) -> str:
    paragraphs = []
    size = 0
    while size < BYTES_EACH:
        chosen = rng.choices(words, k=90)
        paragraphs.append(" ".join(chosen).capitalize() + ".")
        size += len(paragraphs[-1]) + 2
    if near:
        paragraphs = [
            f"{paragraph[: len(paragraph) // 2]} other{paragraph[len(paragraph) // 2 :]}" if n % 4 == 0 else paragraph
            for n, paragraph in enumerate(paragraphs)
        ]
    return "\n\n".join(paragraphs)


def read(folder: Path, out: Path) -> dict[str, Any]:
    """In this process, which should do nothing else: its peak is what is measured."""
    import datasketch  # noqa: F401
    import langchain_text_splitters  # noqa: F401

    from data.build.making.account import Account
    from data.build.making.reading import ReadOptions, language_of, read_folder

    language_of("a few words, so that its profiles are loaded")
    start, before = time.monotonic(), peak_mib()
    with Account(out) as account:
        reading = read_folder(folder, out, ReadOptions(), account)
    return {
        "account": account.as_dict(),
        "statistics": reading.statistics(),
        "seconds": round(time.monotonic() - start, 1),
        "peak_above_imports_mib": round(peak_mib() - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--only", nargs=2, metavar=("FOLDER", "OUT"), help="read one folder and print, in this process")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(read(Path(args.only[0]), Path(args.only[1]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch, "folder"), Path(scratch, "out")
        folder.mkdir()
        out.mkdir()
        num_bytes = make_folder(folder, args.files)
        command = [sys.executable, "-m", "benchmarks.build_folder", "--only", str(folder), str(out)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = {"files": args.files, "megabytes": round(num_bytes / 1e6, 1), **json.loads(done.stdout)}
    met = result["peak_above_imports_mib"] < GOAL_GIB * 1024
    write_result_file("build_folder", result, {"peak_above_imports_gib_below": GOAL_GIB}, met)


if __name__ == "__main__":
    main()
