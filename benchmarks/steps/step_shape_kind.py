"""One build's counts of benchmarks/steps/step_shape.py, in a process of its own; uses only what an older build has too, and static shapes where it has them."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).resolve().parent.parent))  # this build's helpers by bare names: `benchmarks` is the one of PYTHONPATH
from either_build import of

Plan, TokenStore = of("data.curriculum.plan").Plan, of("data.rows.token_store").TokenStore
step_rows = of("data.rows.flat_rows").step_rows
Row = dict[str, Any]
VOCABULARY = 512
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Counts(TorchDispatchMode):
    """Operations that reach the dispatcher, and the shapes that attention is asked for in forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.shapes: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        name = func.name()
        if ("attention" in name or "by_item" in name) and "backward" not in name:
            self.shapes.add(f"{name} {[tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in args]}")
        return func(*args, **(kwargs or {}))


def model_of(attention: str, mode: str, layers: int = 2) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16384, attn_implementation=attention,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    if mode == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if mode == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=4, target_modules=LORA), model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return model.train()


def rows_of(path: Path, steps: int, static: bool) -> Iterator[list[Row]]:
    """Each step's rows, of the plan that the parent has written."""
    with np.load(path) as saved:
        plan, lengths, capacity = Plan(saved["items"], saved["starts"], ""), saved["lengths"], int(saved["capacity"])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.where(lengths < 40, np.maximum(1, lengths * 2 // 3), 1).astype(np.int32)  # of questions the answer has loss
    store = TokenStore((np.arange(offsets[-1]) % (VOCABULARY - 3) + 3).astype(np.uint32), offsets, starts, "")
    pad: Any = lambda row: row  # noqa: E731
    if static:
        from data.rows.static_rows import static_shapes

        pad = static_shapes(plan, lengths, 1, capacity, capacity).pad
    for step in np.unique(np.linspace(0, plan.num_steps - 1, min(steps, plan.num_steps)).astype(int)):
        yield [pad(row) for row in step_rows(plan, store, int(step), 0, 1, capacity, "example")]


def engine_of(attention: str, zero_stage: int, mode: str, backend: str | None, layers: int = 2, alone: bool = False) -> Any:
    """`backend` of torch.compile: graphs and breaks are found before it, and "aot_eager" builds no kernels, which takes minutes a case; None: not compiled.
    `alone`: the engine that one process trains with; otherwise DeepSpeed's, that of several."""
    from trainer.config import TrainerConfig

    config, known = TrainerConfig(zero_stage=zero_stage), ("fp32", torch.device("cpu"))
    if alone:
        from trainer.step import solo

        engine: Any = solo.engine_of(model_of(attention, mode, layers), solo.as_run(config, known[0], mode == "lora"), *known)
    else:
        engine = of("trainer.step.engine").DeepSpeedEngine(model_of(attention, mode, layers), config, *known)
    if backend:
        from trainer.kernels import compiled

        torch._dynamo.reset()  # a case before has compiled the same code for rows of the same shapes
        compiled.BACKEND = backend
        compiled.CompiledLayers(engine.module, static=True)
        torch._dynamo.utils.counters.clear()
    return engine


def counted(path: Path, steps: int, attention: str, zero_stage: int, mode: str, static: bool, compiled: bool = False) -> dict[str, Any]:
    optimiser_step = of("trainer.step.step").optimiser_step
    engine = engine_of(attention, zero_stage, mode, "aot_eager" if compiled else None)
    counts, micro_steps = Counts(), 0
    for number, rows in enumerate(rows_of(path, steps, static)):
        if number == 0:  # buffers are made, the head is tried
            optimiser_step(engine, rows, 1e-4, attention)
        with nullcontext() if compiled else counts:  # torch's compiler steps aside where operations are listened to
            optimiser_step(engine, rows, 1e-4, attention)
        micro_steps += len(rows)
    engine.close()
    if compiled:
        found = torch._dynamo.utils.counters
        return {"micro_steps": micro_steps, "graphs": found["stats"]["unique_graphs"], "breaks": sum(found["graph_break"].values())}
    return {
        "micro_steps": micro_steps, "attention_shapes": len(counts.shapes), "operations_a_micro_step": round(counts.operations / micro_steps),
    }  # fmt: skip


def called(
    path: Path, attention: str, zero_stage: int, mode: str, static: bool, compiled: bool, layers: int, alone: bool
) -> dict[str, int]:
    """Of one step of a network as deep as a real one, by micro-step: what is asked of the dispatcher, and how much of it is matrix products and attention."""
    optimiser_step = of("trainer.step.step").optimiser_step
    rows = next(rows_of(path, 1, static))
    engine = engine_of(attention, zero_stage, mode, "inductor" if compiled else None, layers, alone)
    optimiser_step(engine, rows, 1e-4, attention)
    names = python_calls(lambda: optimiser_step(engine, rows, 1e-4, attention))
    engine.close()
    products = sum(
        count for name, count in names.items() if name.endswith(("mm", "linear", "matmul")) or "attention" in name or "by_item" in name
    )
    return {"called_a_micro_step": round(sum(names.values()) / len(rows)), "of_them_products": round(products / len(rows))}


def python_calls(work: Callable[[], Any]) -> Counter[str]:
    """Operations that are asked of the dispatcher from outside it, forward and backward: those that compiled code has left are seen too."""
    from torch.profiler import ProfilerActivity, profile

    def is_operation(event: Any) -> bool:
        return "::" in event.name and not event.name.startswith("autograd::")

    def inside_another(event: Any) -> bool:
        while event := event.cpu_parent:
            if is_operation(event):
                return True
        return False

    with profile(activities=[ProfilerActivity.CPU]) as made:
        work()
    return Counter(event.name for event in made.events() if is_operation(event) and not inside_another(event))


def loss_bytes(targets: int, vocabulary: int) -> dict[str, float]:
    """Most bytes that the loss holds beside its inputs at any time, in forward and backward, by logit: bf16 as on GPUs."""
    from torch.profiler import ProfilerActivity, profile

    weighted_nll = of("trainer.kernels.linear_loss").weighted_nll
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16().requires_grad_() for n in (targets, vocabulary))
    target, share = torch.randint(0, vocabulary, (targets,), generator=generator), torch.rand(targets, generator=generator)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        weighted_nll(hidden, weight, None, target, share, 2**28).backward()
    events = sorted((e.start_ns(), e.nbytes()) for e in made.profiler.kineto_results.events() if e.name() == "[memory]")
    held = np.cumsum([size for _, size in events])
    return {"most_bytes_a_logit": round(float(held.max()) / (targets * vocabulary), 2)}


def main() -> None:
    asked = json.loads(sys.argv[1])
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    found, deep = {}, {}
    for plan in asked["plans"]:
        for zero_stage in asked["zero"]:
            for mode in asked["modes"]:
                case = f"{plan}, ZeRO-{zero_stage}, {mode}"
                steps = asked["steps"] if (zero_stage, mode) == (1, "full") else asked["fewer_steps"]
                path, known = Path(asked["folder"]) / f"{plan}.npz", [asked[name] for name in ("attention", "static", "compiled")]
                found[case] = counted(path, steps, known[0], zero_stage, mode, *known[1:])
                if asked["deep"] and plan == asked["plans"][-1]:
                    for name in asked["engines"]:
                        of_engine = called(path, known[0], zero_stage, mode, *known[1:], asked["deep"], name == "alone")
                        deep.setdefault(name, {})[f"ZeRO-{zero_stage}, {mode}"] = of_engine
                print(json.dumps({"told": f"{case}: {found[case]}"}), flush=True)
    print(json.dumps({"counts": found, "deep": deep, "loss": loss_bytes(512, 4096)}), flush=True)


if __name__ == "__main__":
    main()
