"""Steps with compiled layers, in one process or in a gloo group: run by test_compiled.py."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models.families import make_model
from trainer.kernels import compiled
from trainer.kernels.compiled import CompiledLayers, Graphs
from trainer.step.plain import PlainEngine
from trainer.step.step import Engine, row_loss

VOCAB = 400


def row(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    """Items of these lengths, loss from their third token on."""
    rng = np.random.default_rng(seed)
    weight = np.concatenate([np.where(np.arange(n) < 2, 0, 1 / sum(lengths)) for n in lengths]).astype(np.float32)
    return {
        "input_ids": rng.integers(3, VOCAB, sum(lengths)),
        "position_ids": np.concatenate([np.arange(n) for n in lengths]),
        "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        "loss_weight": weight,
    }


def gradients(engine: Engine, rows: list[dict[str, Any]], attention: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Of these micro-steps together."""
    total = 0.0
    for one in rows:
        loss = row_loss(engine, one, attention)  # type: ignore[arg-type]
        engine.backward(loss)
        total += float(loss.detach())
    return total, {name: p.grad.detach().clone() for name, p in engine.module.named_parameters() if p.grad is not None}


def engine_of(family: str, attention: str) -> PlainEngine:
    model: Any = make_model(family, VOCAB)
    model.set_attn_implementation(attention)
    model.config.use_cache = False
    return PlainEngine(model.train(), (0.9, 0.95), 0.0, 0.0)


def main(out: Path, world_size: int, rank: int, cold: str = "") -> None:
    """ZeRO 0 to 3 in eager and with compiled layers, whose code lies in out/cache; every rank says how much of it was there already."""
    from tests.numerics.ranks import steps
    from trainer.step.engine import DeepSpeedEngine
    from trainer.store.fragment_file import write_fragments

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(out / "cache")
    told: dict[str, Any] = {}
    for zero_stage in (0, 1, 2, 3):
        for kind in ("eager", "compiled"):
            engine = DeepSpeedEngine(
                steps.made_model(), steps.CONFIG.model_copy(update={"zero_stage": zero_stage}), "fp32", torch.device("cpu")
            )
            seen = Graphs()
            layers = CompiledLayers(engine.module, static=False) if kind == "compiled" else None
            losses, norms = steps.run_steps(engine, rank, world_size)
            told[f"zero{zero_stage}-{kind}"] = {
                "losses": [float(loss) for loss in losses], "norms": norms, "graphs": len(seen.new()), "why_not": layers.why_not if layers else "",
            }  # fmt: skip
            write_fragments(out / f"{cold}zero{zero_stage}-{kind}", rank, engine.fragments())
            if layers:
                layers.close()
            engine.close()
            torch.distributed.barrier()
    told["hits"] = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"]
    told["misses"] = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"]
    told["backend"] = compiled.BACKEND
    (out / f"told-{cold}{rank}.json").write_text(json.dumps(told))
