"""A stage's engine, made on one rank: the model with its start weights, adapter or frozen part, DeepSpeed around it, isolation tried."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import torch

from trainer.export.export import dtype_of, saved_weights
from trainer.jobs.prepare import Job
from trainer.jobs.worker_settings import WorkerSettings
from trainer.kernels.attention import no_cudnn
from trainer.kernels.compiled import CompiledLayers, cache_beside, choose_compile
from trainer.network.buffers import buffers, set_buffer
from trainer.network.families import attention_for, folder_buffers
from trainer.network.loading import load_into
from trainer.network.model import build_model
from trainer.network.text_config import text_config
from trainer.step.engine import MOMENTS, DeepSpeedEngine, deepspeed_config
from trainer.step.freeze import freeze
from trainer.step.isolation import Isolation, decide
from trainer.step.solo import as_run, engine_of
from trainer.step.switches import check_switches
from trainer.store.checkpoint import Checkpoint
from trainer.store.fragments import Fragments, open_fragments
from trainer.store.shares import Shares
from trainer.store.weights import FragmentWeights, Weights


@dataclass(frozen=True)
class StageEngine:
    engine: DeepSpeedEngine
    shapes: dict[str, list[int]]
    """Of the model's own parameters and of what belongs to it beside them."""
    trained_shapes: dict[str, list[int]]
    """Of what a checkpoint holds: the same, or with an adapter its parameters alone."""
    attention: str
    isolation: Isolation
    compiled: CompiledLayers | None = None

    def close(self) -> None:
        """Gives back all that the stage held."""
        if self.compiled:
            self.compiled.close()
        self.engine.close()


def make_engine(
    settings: WorkerSettings,
    job: Job,
    parent: Weights | None,
    device: torch.device,
    saved: Checkpoint | None,
    fragments: Fragments | None = None,
) -> StageEngine:
    """The engine with the parent's fp32 weights, or the checkpoint's and its moments; `parent` may be None where a checkpoint holds all.

    `fragments`: the checkpoint's, as all ranks have opened them together.
    """
    config = text_config(Path(settings.model_folder))
    adapter = job.stage.adapter
    trainer = as_run(settings.trainer, settings.precision, adapter is not None)
    attention = attention_for(config, trainer.attention, device, settings.precision)
    no_cudnn()
    check_switches(trainer, device, settings.precision, bool(adapter))
    torch.manual_seed(settings.seed)
    if trainer.zero_stage == 3:
        with _ShardedParameters(
            config_dict_or_path=deepspeed_config(trainer, settings.precision),
            tensor_overrides=[deepspeed.zero.DeepSpeedTensorOverride.device],
        ):
            module = build_model(settings.model_folder, attention, torch.float32)
    else:
        module = build_model(settings.model_folder, attention, torch.float32).to(device)
    if trainer.gradient_checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    shapes = _shapes(module)
    fragments = fragments or (open_fragments(saved.folder, saved.manifest["world_size"], saved.manifest["shapes"]) if saved else None)
    start: Weights | None = saved_weights(saved, fragments=fragments) if saved else parent
    whole = parent if adapter else start
    assert start is not None and whole is not None
    exact = settings.precision == "bf16" and not adapter
    shares = Shares(whole, twice=exact)
    load_into(module, whole, trainer.zero_stage, shares)
    if buffers(module, constant=True):
        for name, value in folder_buffers(Path(settings.model_folder))[1].items():
            set_buffer(module, name, value, dtype_of(settings.precision))
    if adapter:
        from trainer.adapter.start import put_in

        begun = put_in(module, adapter, settings.seed, job.number, whole, start if saved else None, dtype_of(settings.precision))
    freeze(module, job.stage, settings.seed, job.number)
    if trainer.fp8 != "off":
        from trainer.kernels.fp8 import to_fp8

        to_fp8(module)
    trained_shapes = _shapes(module, only_trained=True) if adapter else shapes
    engine = engine_of(module, trainer, settings.precision, device, saves_frozen=not adapter)
    if exact:
        engine.set_fp32(lambda name: shares.whole(name, device), shares.share)
    elif settings.precision == "bf16":
        engine.set_fp32(begun.read)
    if saved:
        moments = {moment: saved_weights(saved, moment, fragments) for moment in MOMENTS}
        engine.set_moments(lambda moment, name, begin, end: moments[moment].slice(name, begin, end), saved.manifest["optimizer_steps"])
    for weights in (start, whole):
        if isinstance(weights, FragmentWeights):
            weights.fragments.release()
    isolation = decide(
        engine, trainer.packing, attention, config, settings.precision, job.row_tokens or job.capacity, job.longest_item or job.longest
    )
    return StageEngine(engine, shapes, trained_shapes, attention, isolation)


def with_compiled_layers(made: StageEngine, settings: WorkerSettings, static: bool, tell: Callable[[str], None]) -> StageEngine:
    """The same with its layers compiled, where trainer.compile says so; after isolation is tried, on the layers as they are. `static`: rows come in few shapes."""
    wanted, why_not = choose_compile(settings.trainer.compile, made.engine.device)
    if why_not:
        tell(why_not)
    if not wanted:
        return made
    folder = cache_beside(Path(settings.run_folder), made.engine.device)
    graphs = settings.trainer.cuda_graphs
    static = static and made.attention != "padded_sdpa"  # its buckets differ from row to row, whatever a row's length
    if graphs and not static:
        tell("trainer.cuda_graphs: not used in stages whose rows have other shapes from step to step")
    layers = CompiledLayers(made.engine.module, static, tell, graphs and static)
    if not layers.why_not:
        tell(f"layers are compiled: {len(layers.layers)} {type(layers.layers[0]).__name__}; what torch compiles is kept in {folder}")
    return replace(made, compiled=layers)


class _ShardedParameters(deepspeed.zero.Init):  # type: ignore[misc]
    """zero.Init that rounds parameters alone to the engine's precision, as wrapping does under the other ZeRO stages.

    Its own way makes every tensor bf16 that a module makes for itself, and a default dtype of bf16 does so too: rotary frequencies (2 rad off at position 1,000 of a Llama),
    scales of embeddings, multipliers. tests/parity holds every buffer against plain transformers'.
    """

    def _zero_init_param(self, param: torch.nn.Parameter) -> None:
        param.data = param.data.to(self.dtype)
        super()._zero_init_param(param)


def _shapes(module: torch.nn.Module, only_trained: bool = False) -> dict[str, list[int]]:
    named = ((name, p) for name, p in module.named_parameters() if p.requires_grad or not only_trained)
    of_parameters = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in named}  # under ZeRO-3 p itself is empty
    return of_parameters if only_trained else of_parameters | {name: list(buffer.shape) for name, buffer in buffers(module).items()}
