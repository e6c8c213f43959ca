"""Peak memory from Parquet to tokens and plan, for corpora of growing size: python -m benchmarks.corpus_memory [FOLDER]

Made articles of 650 words (about a token each), as many as the residual paper's news (arXiv 2410.10739) have on average, in row groups
of 1,000. Each size is read, tokenised and planned in a process of its own: with `stream: true`, and (small sizes) with all records
held, as it is without. Goal: from 2 to 20 million words the peak of a streamed corpus grows by less than 20 %, the imports (torch and
transformers, more than half a GiB) not counted: with them no growth would look large.
The largest size, 100 million words, takes about four minutes on one core. Writes benchmarks/results/corpus_memory.json.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS_EACH = 650
STREAMED, HELD = (2, 20, 100), (2, 20)  # million words
GOAL_GROWTH = 0.2


def vocabulary() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(2, 9))) for _ in range(4000)]


def make_parquet(path: Path, num_words: int) -> int:
    """Articles with ids and texts of their own, a row group at a time; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words, rng, total = vocabulary(), random.Random(1), num_words // WORDS_EACH
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, total, 1000):
            numbers = range(begin, min(total, begin + 1000))
            texts = [" ".join(rng.choices(words, k=WORDS_EACH)) + "." for _ in numbers]
            writer.write_table(pa.table({"id": [f"article-{n}" for n in numbers], "text": texts}, schema=schema))
    return total


def make_tokenizer_folder(folder: Path) -> None:
    from data.wording.tiny_tokenizer import make_tokenizer

    make_tokenizer([" ".join(vocabulary())], 8192).save_pretrained(folder)


def prepare(parquet: Path, tokenizer: Path, stream: bool, store: Path) -> dict[str, Any]:
    """Records → tokens → plan, in this process, which should do nothing else: its peak is what is measured."""
    from data.config import DataConfig, Stage
    from data.curriculum.catalogue import catalogue_of
    from data.curriculum.plan import compile_plan
    from data.load import load_corpus
    from data.rows.token_store import write_store
    from data.tokens import Encoder, load_tokenizer

    encoder = Encoder(load_tokenizer(str(tokenizer)))
    marks = [("start", time.monotonic(), peak_mib())]
    source = {"path": parquet.name, "split": "train", "holds": "documents", "format": "parquet", "stream": stream}
    corpus = load_corpus(DataConfig.model_validate({"root": str(parquet.parent), "sources": [source]}), 0)
    marks.append(("read", time.monotonic(), peak_mib()))
    catalogue = catalogue_of(corpus)
    made = write_store(store, catalogue, encoder)
    marks.append(("tokens", time.monotonic(), peak_mib()))
    stage = Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 1, "batch_tokens": 2**19, "rate": 1e-5, "loss": "token"})
    plan = compile_plan(stage, catalogue, 0, made.lengths)
    marks.append(("plan", time.monotonic(), peak_mib()))
    return {
        "documents": len(catalogue),
        "tokens": int(made.offsets[-1]),
        "steps": plan.num_steps,
        "plan": plan.sha256[:16],
        "tokens_sha256": made.sha256[:16],
        "seconds": {name: round(at - before, 1) for (_, before, _), (name, at, _) in pairwise(marks)},
        "peak_mib_after": {name: round(mib) for name, _, mib in marks},
        "peak_mib": round(marks[-1][2], 1),
        "peak_above_imports_mib": round(marks[-1][2] - marks[0][2], 1),
    }


def peak_mib() -> float:
    """Of this program alone: ru_maxrss would begin with the size of the process that started it (Linux keeps it over exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def measure(folder: Path, millions: float, stream: bool, timeout_s: float = 900) -> dict[str, Any]:
    """`prepare` in a fresh process; the Parquet file is made where it is missing."""
    parquet, tokenizer = folder / f"{millions:g}m.parquet", folder / "tokenizer"
    if not tokenizer.exists():
        make_tokenizer_folder(tokenizer)
    if not parquet.exists():
        make_parquet(parquet, int(millions * 1e6))
    with tempfile.TemporaryDirectory(dir=folder) as store:
        arguments = [str(parquet), str(tokenizer), str(int(stream)), store]
        command = [sys.executable, "-m", "benchmarks.corpus_memory", "--one", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus_memory", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where the Parquet files are made; default: a temporary folder")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        parquet, tokenizer, stream, store = arguments.one
        print(json.dumps(prepare(Path(parquet), Path(tokenizer), stream == "1", Path(store))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        streamed = {f"{size}m": measure(folder, size, True) for size in STREAMED}
        held = {f"{size}m": measure(folder, size, False) for size in HELD}
    write(streamed, held)


def write(streamed: dict[str, Any], held: dict[str, Any]) -> None:
    growth = growth_of(streamed["2m"], streamed["20m"])
    same = all(streamed[size][key] == held[size][key] for size in held for key in ("plan", "tokens_sha256", "documents"))
    largest = list(streamed)[-1]
    result = {
        "name": "corpus_memory",
        "figures": {
            "growth_2m_to_20m": growth,
            "growth_2m_to_20m_held": growth_of(held["2m"], held["20m"]),
            "mib_a_million_tokens": slope(streamed["2m"], streamed[largest]),
            "mib_a_million_tokens_held": slope(held["2m"], held["20m"]),
            "same_tokens_and_plans": same,
            "streamed": streamed,
            "held": held,
        },
        "goal": {"growth_2m_to_20m": f"< {GOAL_GROWTH:g}", "same_tokens_and_plans": True},
        "holds": growth < GOAL_GROWTH and same,
        "environment": environment(),
    }
    path = Path(__file__).parent.parent / "results" / "corpus_memory.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def growth_of(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Of the peak above the imports."""
    return round(large["peak_above_imports_mib"] / small["peak_above_imports_mib"] - 1, 3)


def slope(small: dict[str, Any], large: dict[str, Any]) -> float:
    return round((large["peak_mib"] - small["peak_mib"]) / (large["tokens"] - small["tokens"]) * 1e6, 3)


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10).stdout.strip()
    threads = os.environ.get("RAYON_NUM_THREADS") or os.cpu_count()
    return {
        "cpus": os.cpu_count(),
        "tokenizer_threads": int(threads or 1),
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
