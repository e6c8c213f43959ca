"""One optimiser step of ours and of the peers on a random Llama, for the GPU rows."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.rows import Row

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
    "1b": Shape(2048, 16, 32, 8, 8192, tied=True),  # Llama 3.2 1B: 1.24 billion
    "3b": Shape(3072, 28, 24, 8, 8192, tied=True),
    "8b": Shape(4096, 32, 32, 8, 14336),
}
TINY = Shape(64, 2, 2, 2, 128, vocabulary=512)

Step = Callable[[list[Row]], float | None]
"""Trains one optimiser step on these rows; returns its seconds where it knows better than the caller's clock."""
Make = Callable[["Setting"], Step]


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
    setting: Setting, zero_stage: int = 1, offload: bool = False, attention: str = "auto", compiled: bool = False, liger: bool = False
) -> Step:
    """Our optimiser step: DeepSpeed, bf16 with fp32 masters, masked attention, loss without the logits.

    `compiled`: torch.compile on every layer; `liger`: its kernels for norms, rotary embedding and SwiGLU.
    """
    import torch

    one_process_group(setting.device)
    from trainer.attention import choose_attention
    from trainer.config import TrainerConfig
    from trainer.engine import DeepSpeedEngine
    from trainer.step import optimiser_step

    attention = choose_attention(attention, "llama", plain=True, flash=True, device=setting.device, precision="bf16")
    if liger and not setting.tiny:  # changes transformers' classes, so before the model is made; this process makes no other
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False)
    model = setting.model(attention, torch.float32)
    if compiled and not setting.tiny:
        for layer in model.model.layers:
            layer.compile()
    engine = DeepSpeedEngine(model, TrainerConfig(zero_stage=zero_stage, offload_optimizer=offload), "bf16", setting.device)

    def step(rows: list[Row]) -> None:
        optimiser_step(engine, rows, RATE, attention)

    return step


def plain_torch(setting: Setting) -> Step:
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


def hugging_face(setting: Setting, num_rows: int, optimiser: str = "adamw_torch_fused", dtype: str = "float32") -> Step:
    """transformers' Trainer with bf16=True, one row a micro-batch; it is asked for one optimiser step at a time, and only that is timed."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        began, spent = 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if not setting.tiny:
                torch.cuda.synchronize()
            self.spent = time.perf_counter() - self.began

    clock, made = Clock(), []
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=num_rows,
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
    trainer = Trainer(model=setting.model("sdpa", getattr(torch, dtype)), args=arguments, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)

    def step(rows: list[Row]) -> float:
        if not made:
            made.extend({"input_ids": torch.as_tensor(row["input_ids"]), "labels": torch.as_tensor(row["input_ids"])} for row in rows)
            trainer.train_dataset = made
        trainer.train()
        return clock.spent

    return step
