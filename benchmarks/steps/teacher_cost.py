"""What following a teacher costs a training step, side by side: python -m benchmarks.teacher_cost

The same rows in turn with and without a teacher's targets, forward and backward, in plain torch on CPU: questions whose answers are taught, and documents of which every
token is (an anchor's worst case); a small model with a vocabulary of 32,768. Then the teacher's forward pass over the questions behind their documents. Half a minute.
Goal: ≤ 1.1 × plain on questions. Writes benchmarks/results/teacher_cost.json.
"""

import time
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.result_file import write_result_file
from trainer.step.plain import PlainEngine
from trainer.step.step import row_loss
from trainer.teaching.teacher import most_probable

VOCAB, ROW_TOKENS, TURNS = 32_768, 512, 5
GOAL = 1.1


def made_engine() -> PlainEngine:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=ROW_TOKENS, attn_implementation="padded_sdpa",
    )  # fmt: skip
    return PlainEngine(AutoModelForCausalLM.from_config(config), (0.9, 0.95), 0.1, 1.0)


def made_row(length: int, answer: int, taught: bool) -> dict[str, Any]:
    """A full row of items of `length` tokens, the last `answer` of which are targets."""
    rng, items = np.random.default_rng(0), ROW_TOKENS // length
    within = np.tile(np.arange(length), items)
    weight = np.where(within >= length - answer, 1 / (answer * items), 0).astype(np.float32)
    row = {
        "input_ids": rng.integers(3, VOCAB, items * length), "position_ids": within, "loss_weight": weight,
        "cu_seqlens": np.arange(0, items * length + 1, length, dtype=np.int32),
    }  # fmt: skip
    if not taught:
        return row
    followed = np.where(weight > 0, 0, -1)
    ids, log_probs = most_probable(torch.randn(int((followed[1:] >= 0).sum()), VOCAB) * 3)
    told = {"teacher_ids": ids.numpy(), "teacher_log_probs": log_probs.numpy()}
    return {**row, "loss_weight": weight / 2, "follow_weight": weight / 2, "followed": followed, **told}


def seconds(engine: PlainEngine, row: dict[str, Any], learns: bool = True) -> float:
    started = time.process_time()  # another process on this core does not count
    if learns:
        engine.backward(row_loss(engine, row, "padded_sdpa"))
    else:
        with torch.no_grad():
            row_loss(engine, row, "padded_sdpa")
    took = time.process_time() - started
    engine.module.zero_grad(set_to_none=True)
    return took


def main() -> None:
    engine, figures = made_engine(), {}
    for name, length, answer in (("questions", 24, 4), ("documents", 64, 63)):
        rows = [made_row(length, answer, taught) for taught in (False, True)]
        times = [[seconds(engine, row) for row in rows] for _ in range(TURNS)][1:]
        plain, taught = (median(of) for of in zip(*times, strict=True))
        figures[name] = {"plain_s": round(plain, 4), "taught_s": round(taught, 4), "ratio": round(median(b / a for a, b in times), 3)}
    behind = made_row(88, 4, False)  # a question behind a document of 64 tokens; a row holds fewer of them
    reads = median(seconds(engine, behind, learns=False) for _ in range(TURNS)) * 88 / 24
    figures["teacher"] = {"reads_an_epoch_of_questions_as_share_of_training_it": round(reads / figures["questions"]["plain_s"], 3)}
    write_result_file("teacher_cost", figures, {"questions": f"<= {GOAL} x plain"}, figures["questions"]["ratio"] <= GOAL)


if __name__ == "__main__":
    main()
