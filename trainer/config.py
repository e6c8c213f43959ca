"""Settings of the trainer room: which model, and how its optimiser steps run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.ground.adapters import Adapter
from data.ground.strict import Strict
from data.wording.begins import Begins


class TinyModel(Strict):
    """A random Llama and a byte-level BPE tokenizer, made on the spot from the experiment's own records."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Upper bound; merges stop when every word is one token."""
    hidden_size: Annotated[int, Field(ge=32, multiple_of=32)] = 96
    layers: Annotated[int, Field(ge=1)] = 2
    head_size: Literal[32, 64, 80, 96, 112, 128] = 32
    """vLLM's CPU attention knows these only."""
    max_positions: Annotated[int, Field(ge=32)] = 1024


class ModelConfig(Strict):
    name: str | None = None
    """Hub id or folder with config.json, tokenizer and safetensors."""
    revision: str | None = None
    resize_embeddings: bool = False
    """Give tokens that the tokenizer knows and the embedding has no row for rows of their own, each the mean of the others; the whole model is
    read and written once, before training."""
    bos: Begins = "auto"
    """What begins every text, in training, exam and hf/: auto: what the tokenizer itself adds; always: the beginning-of-sequence token that it names, or
    an error; never: nothing."""
    tiny: TinyModel | None = None

    @model_validator(mode="after")
    def one_origin(self) -> "ModelConfig":
        if (self.name is None) == (self.tiny is None):
            raise ValueError("give either model.name or model.tiny")
        if self.tiny and self.resize_embeddings:
            raise ValueError("resize_embeddings: a tiny model's embedding always fits its tokenizer; leave it out")
        if self.tiny and self.bos != "auto":
            raise ValueError("bos: a tiny model's tokenizer puts <s> before every text; leave it out")
        return self


class CheckpointConfig(Strict):
    """When a stage that is under way is saved, and what is kept. A stage that ends is always committed."""

    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Besides, or instead of (every_minutes: null), the clock."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints of a stage; an older one goes only when a newer one is committed. None outlives its stage."""
    failures: Annotated[int, Field(ge=1)] = 3
    """Saves in a row that may fail (disk full) before the run gives up; training goes on meanwhile."""
    mirror: str | None = None
    """A place that pyarrow's filesystems know (s3://bucket/path?region=…): what is committed is copied there, and read from there where
    the run folder lacks it."""


class WatchConfig(Strict):
    """What counts as hung; see trainer/watch/watchdog.py."""

    step_s: Annotated[float, Field(gt=0)] = 30.0
    """A step may take 3 × the median and this, and five minutes more where layers are compiled."""
    start_s: Annotated[float, Field(gt=0)] = 1800.0
    """Imports, each of the first three steps (kernels are compiled in them), and loading weights beside what their bytes take."""
    save_s: Annotated[float, Field(gt=0)] = 600.0
    """A save, and a stage's end with its export, beside what their bytes take: four times as long as at the rate that storage has shown (trainer/store/storage.py)."""
    replicas_every_steps: Annotated[int, Field(ge=0)] = 100
    """Steps between comparisons of what every rank holds alike; 0: never."""


MOST_ROW_TOKENS = 16_384
"""What `row_tokens: auto` chooses at most, and cuts items at."""


class TrainerConfig(Strict):
    num_workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Training processes; empty: one per GPU of the cluster, or two CPU workers. [min, max]: at every (re)start as many as find room."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 with fp32 masters on GPUs, fp32 on CPUs."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """Of teachers, and of the start that an anchor holds to. bf16 takes half the memory and on GPUs a fraction of the time, and names another top 20 at a quarter of all places."""
    row_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = 4096
    """Most tokens of one row: one micro-step of one rank. auto: on GPUs the longest of 2,048 to 16,384 whose padded rows are 97 % real tokens in this experiment's own
    steps, on CPUs 4,096; no item of at most 16,384 tokens is cut."""
    long_documents: Literal["split", "refuse"] = "split"
    """Documents over row_tokens (or the model's positions) are split into rows, or refused. Questions are always refused."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, far less memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the model's layers by torch (trainer/kernels/compiled.py). auto: on GPUs where a C compiler is; never on CPUs. What cannot be compiled trains as it is, and a line says why."""
    cuda_graphs: bool = False
    """Record the compiled layers' kernels once and replay them: for small models, whose kernels are shorter than their launches. bf16 under ZeRO-1 alone; not measured yet."""
    fp8: Literal["off", "tensorwise"] = "off"
    """Matrix products of the layers in 8-bit floats with a scale for each tensor (torchao), on Hopper GPUs and later, compiled, bf16, ZeRO-1 or 2. It trains other weights; not measured yet."""
    offload_optimizer: bool = False
    """fp32 masters and moments in host memory."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0: no clipping."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """On matrices and embeddings, not on norms and biases."""
    attention: Literal["auto", "by_item", "varlen", "padded_sdpa", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How packed items are kept apart (trainer/kernels/attention.py). auto: on GPUs in bf16 flash_attention_2 where it can be imported, else varlen, torch's own kernel
    for packed rows; on CPUs by_item; transformers' own where a family computes more than that."""
    shapes: Literal["auto", "static", "exact"] = "auto"
    """static: rows are padded to a ladder of a few lengths, so that kernels and compiled code meet the same shapes at every step; pads carry no weight. exact: as
    they are packed. auto: static on GPUs where items share rows, else exact. The same training up to the order of sums."""
    packing: Literal["auto", "packed", "one_item"] = "auto"
    """Many items in a row, or one. auto: packed where changing one item of a row leaves the others' logits as they are, tried on this
    model, attention and precision before each stage; else one item per row, rows of like length together. The loss is the same."""
    keep_rounded_stages: bool = False
    """Stages that versions before 2026-11-28 trained under ZeRO-3 in bf16, with rounded rotary frequencies, are used as they are instead of trained anew."""
    adapter: Adapter | None = None
    """Train LoRA or another adapter of peft in every stage, where stage or arm do not say otherwise; empty: all weights."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of metrics."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts in a row, without a new checkpoint between them, before the run gives up."""
    wait_for_nodes_s: Annotated[float, Field(ge=0)] = 600.0
    """How long a (re)start waits for CPUs or GPUs that a cluster has lost."""
    local_copies: str | None = None
    """Folder on a disk of each node (trainer/store/local_copies.py): what training starts from, a model or another run's stage, is copied there once and read there. For
    storage that is shared and slow; empty: read where it lies, by shares."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def workers_in_order(self) -> "TrainerConfig":
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError("num_workers [min, max]: min is the larger one")
        return self

    @property
    def row_bound(self) -> int:
        """Tokens that no row exceeds; also where it is still to be chosen."""
        return MOST_ROW_TOKENS if self.row_tokens == "auto" else self.row_tokens

    def refused_draw(self, what: str, share: float) -> str | None:
        """Why something drawn at random in training (a dropout of this share) does not go with these settings; None where it does."""
        if "attention" in what and self.attention == "varlen":
            return f"{what}: {share:g}, and trainer.attention: varlen knows no dropout; use another attention, or set it to 0"
        if isinstance(self.num_workers, tuple) and self.num_workers[0] != self.num_workers[1]:
            return (
                f"{what}: {share:g} is drawn by each worker for its own rows, so every number of trainer.num_workers {list(self.num_workers)} would "
                "train other weights; give one number, or set it to 0"
            )
        return None

    def workers(self, num_gpus: int) -> tuple[int, int]:
        """Least and most training processes, where there are so many GPUs."""
        if isinstance(self.num_workers, tuple):
            return self.num_workers
        count = self.num_workers or num_gpus or 2
        return count, count
