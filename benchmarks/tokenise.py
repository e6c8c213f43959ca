"""From JSONL to tokens with loss spans: python -m benchmarks.tokenise

6,000 made biographies and 30,000 questions about them in two JSONL files. Ours: data/readers.py (every row judged), data/tokens.py into a token
store. Peer: `datasets` reads the same files and maps a fast tokenizer with offsets over them, 1,000 rows at a time, with the same loss spans.
One thread each, A B A B, median of 5, CPU seconds; ids and spans must be equal. The reading alone is shown as well.
Goal: at least 1.15 times less CPU. Writes benchmarks/results/tokenise.json.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.result_file import write_result_file
from console import door, progress
from data.bios import make_bios
from data.catalogue import catalogue_of
from data.config import Bios, DataConfig
from data.load import load_corpus
from data.templates import question_prompt
from data.tiny_tokenizer import make_tokenizer
from data.tokens import Encoder, TokenStore, write_store

PEOPLE, ROUNDS = 6_000, 5
GOAL = 1.15


def write_files(folder: Path) -> list[str]:
    """The two JSONL files; returns some texts for the tokenizer."""
    part = make_bios(Bios(replay_people=0, train_people=PEOPLE, test_people=1), 0).parts["train"]
    with (folder / "documents.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in part.documents)
    with (folder / "questions.jsonl").open("w") as file:
        rows = ({"id": q.id, "doc_id": q.doc_id, "question": q.question, "answer": q.answers[0]} for q in part.questions)
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return [d.text for d in part.documents[:1000]]


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
        tokenizer = make_tokenizer(write_files(folder), 4096)
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
