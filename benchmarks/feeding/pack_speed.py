"""Training on packed rows against padding, really computed: python -m benchmarks.pack_speed

A random Llama (hidden 128, two layers), steps of 24 items, forward, backward and AdamW on CPU: our step (data/rows/flat_rows.py, trainer/step/step.py,
rows of 4,096) against the same items eight at a time, padded to the longest, in a plain torch loop and in transformers' Trainer. Three
workloads: benchmarks/mix.py with loss on answers of questions; questions of nearly one length (80 to 140 tokens), likewise; documents of
nearly one length (900 to 1,100). A B C A B C, median of 5. Tokens are those that are no padding. The losses of ours and the plain loop
must agree. Goal: at least 2.5 times HF Trainer on the mix, at least 1.3 times on nearly uniform lengths.
Writes benchmarks/results/pack_speed.json.
"""

import tempfile
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.mix import mixed_lengths, uniform_lengths
from benchmarks.peers import step_clock
from benchmarks.result_file import write_result_file
from benchmarks.tiny import made_store, plan_of, tiny_llama
from console import door, progress
from data.rows.flat_rows import step_rows
from data.rows.token_store import TokenStore
from trainer.step.plain import PlainEngine
from trainer.step.step import optimiser_step

STEP_ITEMS, PADDED_BATCH, ROUNDS, CAPACITY, RATE = 24, 8, 5, 4096, 1e-4
GOALS = {"mix": 2.5, "questions": 1.3}


def collate(store: TokenStore, items: list[int]) -> dict[str, torch.Tensor]:
    """What pad-to-longest collators make: input_ids, attention_mask, labels with -100 where no loss is."""
    width = max(int(store.lengths[n]) for n in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, n in enumerate(items):
        tokens = torch.as_tensor(store.item(n).astype(np.int64))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, store.loss_start[n] : len(tokens)] = tokens[store.loss_start[n] :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Packed:
    def __init__(self) -> None:
        self._engine = PlainEngine(tiny_llama("by_item"), (0.9, 0.95), 0.1, 1.0)

    def step(self, store: TokenStore, items: list[int]) -> float:
        rows = step_rows(plan_of(len(store.lengths), STEP_ITEMS), store, items[0] // STEP_ITEMS, 0, 1, CAPACITY, "token")
        return float(optimiser_step(self._engine, rows, RATE, "by_item")[0])


class Padded:
    """The loop that people write, with the mean over all target tokens of the step."""

    def __init__(self) -> None:
        self._engine = PlainEngine(tiny_llama("sdpa"), (0.9, 0.95), 0.1, 1.0)

    def step(self, store: TokenStore, items: list[int]) -> float:
        targets = sum(int(store.lengths[n] - store.loss_start[n]) for n in items)
        total = 0.0
        for start in range(0, len(items), PADDED_BATCH):
            batch = collate(store, items[start : start + PADDED_BATCH])
            loss = self._engine.module(**batch, num_items_in_batch=targets).loss
            self._engine.backward(loss)
            total += float(loss.detach())
        self._engine.step(RATE)
        return total


class HuggingFace:
    """transformers' Trainer; one call trains one step, and only the step is timed."""

    def __init__(self, folder: str) -> None:
        from transformers import PrinterCallback, Trainer, TrainingArguments

        self.clock = step_clock()
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=PADDED_BATCH,
            gradient_accumulation_steps=STEP_ITEMS // PADDED_BATCH,
            max_steps=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        )
        self._trainer = Trainer(model=tiny_llama("sdpa"), args=arguments, callbacks=[self.clock])
        self._trainer.remove_callback(PrinterCallback)

    def step(self, store: TokenStore, items: list[int]) -> float:
        self._trainer.train_dataset = items
        self._trainer.data_collator = lambda batch: collate(store, batch)
        self._trainer.train()
        return float("nan")


def measure(lengths: Any, answers: bool, advance: Any) -> dict[str, Any]:
    store = made_store(lengths, answers)
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"ours": Packed(), "padded": Padded(), "hf": HuggingFace(folder)}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        losses: dict[str, list[float]] = {name: [] for name in kinds}
        tokens = []
        for number in range(ROUNDS + 1):  # the first step warms up and is not counted
            items = list(range(number * STEP_ITEMS, (number + 1) * STEP_ITEMS))
            tokens.append(int(store.lengths[items].sum()))
            for name, kind in kinds.items():
                started = time.perf_counter()
                losses[name].append(kind.step(store, items))
                seconds[name].append(kind.clock.spent if isinstance(kind, HuggingFace) else time.perf_counter() - started)
                advance()
    np.testing.assert_allclose(losses["ours"], losses["padded"], rtol=1e-4)  # the same mathematics: fp32 in another order
    rates = {name: [t / s for t, s in zip(tokens[1:], of[1:], strict=True)] for name, of in seconds.items()}
    return {
        "tokens_per_s": {name: round(median(of)) for name, of in rates.items()},
        "over_padded": round(median(a / b for a, b in zip(rates["ours"], rates["padded"], strict=True)), 2),
        "over_hf": round(median(a / b for a, b in zip(rates["ours"], rates["hf"], strict=True)), 2),
    }


def main(argv: list[str] | None = None) -> None:
    num_items = STEP_ITEMS * (ROUNDS + 1)
    questions = np.random.default_rng(1).integers(80, 141, num_items)
    with progress() as bar:
        task = bar.add_task("pack_speed", total=3 * 3 * (ROUNDS + 1))
        workloads = {
            "mix": measure(mixed_lengths(num_items), True, lambda: bar.advance(task)),
            "questions": measure(questions, True, lambda: bar.advance(task)),
            "documents": measure(uniform_lengths(num_items), False, lambda: bar.advance(task)),
        }
    figures = {f"{name}_over_hf": workloads[name]["over_hf"] for name in workloads}
    holds = all(workloads[name]["over_hf"] >= goal for name, goal in GOALS.items())
    goal = {f"{name}_over_hf": f">= {goal}" for name, goal in GOALS.items()}
    write_result_file("pack_speed", {**figures, "workloads": workloads, "threads": torch.get_num_threads()}, goal, holds)


if __name__ == "__main__":
    door(main)
