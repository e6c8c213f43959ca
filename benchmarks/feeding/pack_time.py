"""Seconds to pack a million lengths: python -m benchmarks.pack_time

The lengths of benchmarks/mix.py in rows of 4,096, 1,000 at a time (what `datasets.map` gives TRL) and 10,000: data/rows/packing.py against
TRL's `bfd_split`, in turns, five times 200,000 lengths. TRL's time holds moving the tokens into rows, at one byte a token; ours the pieces
of every row. Beside it: packing in steps of 256 items for 8 ranks, as training does it, and making the tokens of as many items.
Goal: at least 10 times faster than TRL, and less than 1 % of tokenising. CPU seconds. Writes benchmarks/results/pack_time.json.
"""

import gc
import os
import time
from statistics import median

import numpy as np

from benchmarks.mix import mixed_lengths, token_table
from benchmarks.peers import peer
from benchmarks.result_file import write_result_file
from console import door, progress
from data.config import Bios
from data.corpus.bios import make_bios
from data.rows.packing import pack
from data.tokens import Encoder
from data.wording.tiny_tokenizer import make_tokenizer

NUM_LENGTHS, ROUNDS, CAPACITY = 1_000_000, 5, 4096
WINDOWS = (1_000, 10_000)
GOAL, GOAL_OF_TOKENISING = 10.0, 0.01


def tokenising_s(num_tokens: float) -> float:
    """CPU seconds to make so many tokens, from those of 20,000 documents."""
    documents = make_bios(Bios(replay_people=0, train_people=20_000, test_people=1), 0).parts["train"].documents
    encoder = Encoder(make_tokenizer([document.text for document in documents[:2000]], 4096))
    started = time.process_time()
    made = sum(len(ids) for ids, _ in encoder.encode(documents))
    return (time.process_time() - started) / made * num_tokens


def main(argv: list[str] | None = None) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    packed_by_trl = peer("trl.data_utils")._pack_bfd
    lengths = mixed_lengths(NUM_LENGTHS)
    packed_by_trl(token_table(lengths[:100]), CAPACITY, "split")  # imports more
    gc.collect()
    gc.freeze()  # the millions of objects that imports leave are on neither side's account: going through them triples our time
    figures: dict[str, float] = {}
    with progress() as bar:
        task = bar.add_task("pack_time", total=len(WINDOWS) * ROUNDS)
        for window in WINDOWS:
            ours, theirs = [], []
            for part in np.split(lengths, ROUNDS):
                windows = [part[n : n + window] for n in range(0, len(part), window)]
                tables = [token_table(w) for w in windows]  # not counted
                started = time.process_time()
                for w in windows:
                    pack(w, 1, CAPACITY)
                middle = time.process_time()
                for table in tables:
                    packed_by_trl(table, CAPACITY, "split")
                ours.append(middle - started)
                theirs.append(time.process_time() - middle)
                bar.advance(task)
            figures[f"ours_{window}_s"] = round(ROUNDS * median(ours), 3)
            figures[f"trl_{window}_s"] = round(ROUNDS * median(theirs), 3)
            figures[f"faster_{window}"] = round(median(b / a for a, b in zip(ours, theirs, strict=True)), 1)
    started = time.process_time()
    for n in range(0, NUM_LENGTHS, 256):
        pack(lengths[n : n + 256], 8, CAPACITY)
    figures["steps_of_256_on_8_ranks_s"] = round(time.process_time() - started, 3)
    figures["tokenising_s"] = round(tokenising_s(float(lengths.sum())), 1)
    figures["share_of_tokenising"] = round(figures["ours_1000_s"] / figures["tokenising_s"], 5)
    holds = min(figures[f"faster_{window}"] for window in WINDOWS) >= GOAL and figures["share_of_tokenising"] < GOAL_OF_TOKENISING
    write_result_file("pack_time", figures, {"faster": f">= {GOAL:g}", "share_of_tokenising": f"< {GOAL_OF_TOKENISING}"}, holds)


if __name__ == "__main__":
    door(main)
