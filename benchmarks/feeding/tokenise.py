"""From JSONL to tokens with loss spans: python -m benchmarks.tokenise

1,500 documents of about a thousand tokens and 6,000 questions of about a hundred (benchmarks/mix.py) in two JSONL files, made words. Ours:
data/readers.py (every row judged), data/tokens.py into a token store. Peer: `datasets` reads the same files and maps a fast tokenizer with offsets over them, 1,000 rows at a time, with the same loss spans.
One thread each, A B A B, median of 5, CPU seconds; ids and spans must be equal. The reading alone is shown as well.
Goal: at least 1.15 times less CPU. Writes benchmarks/results/tokenise.json.
"""

import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.mix import mixed_lengths
from benchmarks.result_file import write_result_file
from console import door, progress
from data.config import DataConfig
from data.curriculum.catalogue import catalogue_of
from data.load import load_corpus
from data.rows.token_store import TokenStore, write_store
from data.tokens import Encoder
from data.wording.templates import question_prompt
from data.wording.tiny_tokenizer import make_tokenizer

NUM_ITEMS, ROUNDS = 7_500, 5
TOKENS_A_WORD = 1.4
GOAL = 1.15


def write_files(folder: Path) -> list[str]:
    """The two JSONL files; returns some texts for the tokenizer."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioubcdfglmnprst"), rng.integers(2, 10))) for _ in range(20_000)]
    often = 1 / np.arange(10, len(words) + 10)  # Zipf: few words are most of a text
    lengths = (mixed_lengths(NUM_ITEMS) / TOKENS_A_WORD).astype(int)
    drawn = iter(np.split(rng.choice(len(words), lengths.sum(), p=often / often.sum()), np.cumsum(lengths)[:-1]))
    texts = [" ".join(words[n] for n in of) for of in drawn]
    documents = {f"d{n}": text for n, text in enumerate(texts) if lengths[n] * TOKENS_A_WORD > 300}
    questions = [text for n, text in enumerate(texts) if f"d{n}" not in documents]
    with (folder / "documents.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": id, "text": text}) + "\n" for id, text in documents.items())
    with (folder / "questions.jsonl").open("w") as file:
        for n, (text, doc_id) in enumerate(zip(questions, itertools.cycle(documents), strict=False)):
            question, answer = text.rsplit(" ", 3)[0], " ".join(text.rsplit(" ", 3)[1:])
            file.write(json.dumps({"id": f"q{n}", "doc_id": doc_id, "question": question, "answer": answer}) + "\n")
    return list(documents.values())[:300]


def ours(folder: Path, tokenizer: Any, target: Path) -> tuple[TokenStore, float]:
    """The store, and the CPU seconds of reading alone."""
    sources = [{"path": f"{kind}.jsonl", "split": "train", "holds": kind} for kind in ("documents", "questions")]
    started = time.process_time()
    corpus = load_corpus(DataConfig.model_validate({"root": str(folder), "sources": sources}), 0)
    read_s = time.process_time() - started
    return write_store(target, catalogue_of(corpus), Encoder(tokenizer)), read_s


def theirs(folder: Path, tokenizer: Any, cache: Path) -> list[Any]:
    """Both files as datasets of input_ids and loss_start."""
    import datasets

    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]

    def documents(rows: dict[str, list[str]]) -> dict[str, Any]:
        ids = tokenizer(rows["text"], add_special_tokens=False)["input_ids"]
        return {"input_ids": [start + i for i in ids], "loss_start": [1] * len(ids)}

    def questions(rows: dict[str, list[str]]) -> dict[str, Any]:
        prompts = [question_prompt(question) for question in rows["question"]]
        texts = [f"{prompt} {answer}" for prompt, answer in zip(prompts, rows["answer"], strict=True)]
        made = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        firsts = [
            next(n for n, (_, last) in enumerate(offsets) if last > len(prompt))
            for prompt, offsets in zip(prompts, made["offset_mapping"], strict=True)
        ]
        return {"input_ids": [start + i + end for i in made["input_ids"]], "loss_start": [1 + first for first in firsts]}

    datasets.disable_progress_bars()
    made = []
    for kind, function in (("documents", documents), ("questions", questions)):
        rows = datasets.load_dataset("json", data_files=str(folder / f"{kind}.jsonl"), split="train", cache_dir=str(cache))
        made.append(rows.map(function, batched=True, remove_columns=rows.column_names))
    return made


def same(store: TokenStore, made: list[Any]) -> bool:
    ids = np.concatenate([np.concatenate(part["input_ids"]) for part in made])
    spans = np.concatenate([np.asarray(part["loss_start"]) for part in made])
    return bool(np.array_equal(store.tokens, ids) and np.array_equal(store.loss_start, spans))


def main(argv: list[str] | None = None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cpu_s: dict[str, list[float]] = {"ours": [], "ours_reading": [], "datasets": []}
    with tempfile.TemporaryDirectory() as place, progress() as bar:
        folder = Path(place)
        tokenizer = make_tokenizer(write_files(folder), 8192)
        task = bar.add_task("tokenise", total=ROUNDS + 1)
        for n in range(ROUNDS + 1):  # the first round warms both up and is not counted
            started = time.process_time()
            store, read_s = ours(folder, tokenizer, folder / f"ours-{n}")
            middle = time.process_time()
            made = theirs(folder, tokenizer, folder / f"theirs-{n}")
            ended = time.process_time()
            if n:
                for name, spent in (("ours", middle - started), ("ours_reading", read_s), ("datasets", ended - middle)):
                    cpu_s[name].append(spent)
            else:
                equal = same(store, made)
            bar.advance(task)
    ratio = median(b / a for a, b in zip(cpu_s["ours"], cpu_s["datasets"], strict=True))
    figures = {
        "tokens": len(store.tokens),
        "less_cpu": round(ratio, 2),
        "same_ids": equal,
        "cpu_s": {name: round(median(spent), 2) for name, spent in cpu_s.items()},
    }
    write_result_file("tokenise", figures, {"less_cpu": f">= {GOAL}", "same_ids": True}, ratio >= GOAL and equal)


if __name__ == "__main__":
    door(main)
