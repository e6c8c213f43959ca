"""One optimiser step of ours and of the peers on a random Llama, for the GPU rows."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers import peer, step_clock
from data.curriculum.plan import Plan
from data.rows.flat_rows import Row, step_rows
from data.rows.token_store import TokenStore

RATE = 5e-6


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int = 128_256
    tied: bool = False

    def config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=8192,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "135m": Shape(576, 30, 9, 3, 1536, vocabulary=49_152, tied=True),  # SmolLM2
    "1b": Shape(2048, 16, 32, 8, 8192, tied=True),  # Llama 3.2 1B: 1.24 billion
    "3b": Shape(3072, 28, 24, 8, 8192, tied=True),
    "8b": Shape(4096, 32, 32, 8, 14336),
}
TINY = Shape(64, 2, 2, 2, 128, vocabulary=512)

Step = Callable[[list[Row]], float | None]
"""Trains one optimiser step on these rows; returns its seconds where it knows better than the caller's clock."""
Make = Callable[["Setting", "Workload"], Step]


@dataclass(frozen=True)
class Setting:
    """One kind of step on one model."""

    shape: Shape
    tiny: bool
    gradient_checkpointing: bool = False

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu" if self.tiny else "cuda")

    def model(self, attention: str, dtype: Any) -> Any:
        """Random weights, made on the device."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(self.shape.config(), dtype=dtype, attn_implementation=attention)
        model.config.use_cache = False
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.train()


def one_process_group(device: Any) -> None:
    import torch

    if device.type == "cpu":
        os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo" if device.type == "cpu" else "nccl", rank=0, world_size=1, store=torch.distributed.HashStore()
        )


def ours(
    setting: Setting,
    workload: "Workload",
    zero_stage: Literal[0, 1, 2, 3] = 1,
    offload: bool = False,
    attention: str = "auto",
    compile: Literal["auto", "on", "off"] = "auto",
    fp8: Literal["off", "tensorwise"] = "off",
    liger: bool = False,
    deepspeed: bool = False,
) -> Step:
    """Our optimiser step: bf16 with fp32 masters, masked attention, loss without the logits, layers compiled where trainer.compile says so.

    `deepspeed`: its engine, which one process would not take. `liger`: its kernels for norms, rotary embedding and SwiGLU, which do not go with compiled layers.
    """
    import torch

    one_process_group(setting.device)
    from trainer.config import TrainerConfig
    from trainer.kernels.attention import choose_attention
    from trainer.step.engine import DeepSpeedEngine
    from trainer.step.solo import as_run, engine_of

    attention = choose_attention(attention, "llama", plain=True, flash=True, device=setting.device, precision="bf16")
    if liger and not setting.tiny:  # changes transformers' classes, so before the model is made; this process makes no other
        peer("liger_kernel.transformers").apply_liger_kernel_to_llama(
            rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False
        )
    model = setting.model(attention, torch.float32)
    if fp8 != "off":
        from trainer.kernels.fp8 import to_fp8

        peer("torchao")
        to_fp8(model)
    config = TrainerConfig(zero_stage=zero_stage, offload_optimizer=offload)
    engine = (
        DeepSpeedEngine(model, config, "bf16", setting.device)
        if deepspeed
        else engine_of(model, as_run(config, "bf16"), "bf16", setting.device)
    )
    return OurStep(engine, workload, attention, compile)


class OurStep:
    """An engine's step as a stage takes it on a GPU: rows of static shapes, put on the device ahead, layers compiled before the first one; with `compile` off rows as they
    are packed. `about`: what was chosen, for the figures.
    """

    def __init__(self, engine: Any, workload: "Workload", attention: str, compile: Literal["auto", "on", "off"]) -> None:
        from data.rows.static_rows import fill, static_shapes
        from trainer.kernels.attention import no_cudnn
        from trainer.kernels.compiled import CompiledLayers, Graphs, cache_beside, choose_compile

        no_cudnn()
        self.engine, self.attention, self._shapes = engine, attention, None
        self._graphs, self.about = Graphs(), {"attention": attention, "compiled": False, "graphs": 0}
        if compile != "off":
            asked = (workload.plan, workload.store.lengths, 1, workload.row_tokens, workload.row_tokens)
            self._shapes = replace(static_shapes(*asked), longest=workload.longest())
            self.about |= {"lengths": self._shapes.lengths, "fill": round(fill(self._shapes, *asked), 4)}
        if choose_compile(compile, engine.device)[0]:
            cache_beside(Path(tempfile.gettempdir()) / "run", engine.device)
            layers = CompiledLayers(engine.module, static=True)
            self.about["compiled"] = layers.why_not or True

    def __call__(self, rows: list[Row]) -> None:
        from trainer.step.placing import Placing
        from trainer.step.step import optimiser_step

        padded = map(self._shapes.pad, rows) if self._shapes else rows
        optimiser_step(self.engine, list(Placing(self.attention, self.engine.device).rows(iter(padded))), RATE, self.attention)
        self.about["graphs"] += len(self._graphs.new())


def plain_torch(setting: Setting, workload: "Workload") -> Step:
    """The loop that people write: fp32 weights under autocast, transformers' sdpa over the whole row, all logits, fused AdamW."""
    import torch

    model = setting.model("sdpa", torch.float32)
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, fused=not setting.tiny)

    def step(rows: list[Row]) -> None:
        for row in rows:
            ids = torch.as_tensor(row["input_ids"], device=setting.device)[None]
            with torch.autocast(setting.device.type, dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss / len(rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    return step


def hugging_face(
    setting: Setting, workload: "Workload", optimiser: str = "adamw_torch_fused", dtype: str = "float32", batch: int = 1
) -> Step:
    """transformers' Trainer with bf16=True, `batch` rows a micro-batch, padded to the longest of them; it is asked for one optimiser step at a time, and only that is timed."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    clock = step_clock() if setting.tiny else step_clock(torch.cuda.synchronize)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        max_steps=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch" if setting.tiny else optimiser,
        bf16=True,
        use_cpu=setting.tiny,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=setting.model("sdpa", getattr(torch, dtype)), args=arguments, callbacks=[clock], data_collator=_pad)
    trainer.remove_callback(PrinterCallback)
    # It empties the GPU's cache before every call of train(): in real training once, here within each step.
    trainer.accelerator.free_memory = lambda *objects: list(objects)

    def step(rows: list[Row]) -> float:
        trainer.args.gradient_accumulation_steps = -(-len(rows) // batch)
        trainer.train_dataset = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        trainer.train()
        return clock.spent

    return step


def _pad(rows: list[Any]) -> dict[str, Any]:
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence(rows, batch_first=True)
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    return {"input_ids": ids, "labels": labels, **({"attention_mask": (labels != -100).long()} if len(rows) > 1 else {})}


@dataclass(frozen=True)
class Workload:
    """A compiled plan over made items: every step has other items, other lengths and other rows than the one before."""

    store: TokenStore
    plan: Plan
    row_tokens: int

    def rows(self, step: int) -> list[Row]:
        return step_rows(self.plan, self.store, step, 0, 1, self.row_tokens, "token")

    def longest(self) -> int:
        """Tokens of the longest item, as attention is told."""
        return int(min(self.store.lengths.max(), self.row_tokens))
