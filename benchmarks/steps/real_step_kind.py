"""One kind of step of benchmarks/steps/real_step.py, in a process of its own: a line with a step's number in, a line of figures out.

Imports the trainer from wherever PYTHONPATH says, so that an older build's can be asked the same; uses only what both have.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")

import numpy as np
import torch

from benchmarks.mix import mixed_lengths

sys.path.append(str(Path(__file__).resolve().parent.parent))  # this build's helpers by bare names: `benchmarks` is the one of PYTHONPATH
from either_build import of

Plan, TokenStore = of("data.curriculum.plan").Plan, of("data.rows.token_store").TokenStore
step_rows = of("data.rows.flat_rows").step_rows
Row = dict[str, Any]
RATE = 1e-4
SIZES = {
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
}  # fmt: skip
ROW_TOKENS = {"135m": 2048, "tiny": 256}


def made_rows(size: str, steps: int) -> list[Row]:
    """A row a step, filled with as many items of the mix as fit: the rows differ in length and in their items."""
    tokens, lengths = ROW_TOKENS[size], mixed_lengths(64 * steps)
    if size == "tiny":
        lengths = np.maximum(8, lengths // 8)
    lengths = lengths[lengths <= tokens]
    starts, used = [0], 0
    for number, length in enumerate(lengths):
        if used + length > tokens:
            starts, used = [*starts, number], 0
        used += int(length)
    plan = Plan(np.arange(starts[steps]), np.array(starts[: steps + 1]), "made")
    own = lengths[: starts[steps]]
    question = own < (300 if size == "135m" else 40)
    store = TokenStore(
        tokens=np.random.default_rng(0).integers(3, SIZES[size]["vocab_size"], own.sum()).astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(own)]),
        loss_start=np.where(question, np.maximum(1, own - np.maximum(2, own // 10)), 1).astype(np.int32),
        sha256="made",
    )
    return [step_rows(plan, store, step, 0, 1, tokens, "token")[0] for step in range(steps)]


def model_of(size: str, attention: str) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=8192, tie_word_embeddings=True, attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    return model.train()


def trainer_step(size: str, kind: str) -> Callable[[Row], float]:
    """The trainer's own, one process in fp32: as it is set up, by DeepSpeed's ZeRO-1, or by that in an older build."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    from trainer.config import TrainerConfig

    optimiser_step, DeepSpeedEngine = of("trainer.step.step").optimiser_step, of("trainer.step.engine").DeepSpeedEngine
    attention = "padded_sdpa" if kind == "before" else "by_item"
    model, config, device = model_of(size, attention), TrainerConfig(zero_stage=1), torch.device("cpu")
    if kind != "before":
        from trainer.watch.heap import keep_freed_memory

        keep_freed_memory()  # as trainer/worker.py does where it trains on CPUs
    if kind == "ours":
        from trainer.step.solo import as_run, engine_of

        engine = engine_of(model, as_run(config, "fp32"), "fp32", device)
    else:
        engine = DeepSpeedEngine(model, config, "fp32", device)
    return lambda row: float(optimiser_step(engine, [row], RATE, attention)[0])


def torch_step(size: str) -> Callable[[Row], float]:
    """The loop that people write: transformers' sdpa over the row (items see each other), all logits, fused AdamW, clipping."""
    model = model_of(size, "sdpa")
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(row: Row) -> float:
        ids = torch.as_tensor(row["input_ids"])[None]
        weight = torch.as_tensor(row["loss_weight"][1:])
        logits = model(input_ids=ids).logits[0, :-1]
        loss = (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") * weight).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        return float(loss.detach())

    return step


def main() -> None:
    kind, size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rows = made_rows(size, steps)
    step = torch_step(size) if kind == "torch" else trainer_step(size, kind)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        row = rows[int(line)]
        started, cpu = time.perf_counter(), time.process_time()
        loss = step(row)
        figures = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
        print(json.dumps({**figures, "loss": loss, "tokens": len(row["input_ids"]), "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
