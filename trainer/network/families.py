"""What differs between families of models: which attention is theirs, whether they have state-space layers, how their files are laid out."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from console import UserError
from data.ground.model_config import ropes_in
from trainer.kernels.attention import choose_attention, varlen_leaves_out
from trainer.network.buffers import With, buffers, read_buffers, read_constants
from trainer.store.weights import FolderWeights, Weights

_KERNELS = ("mamba_ssm", "causal_conv1d")
Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Tensors by the network's names → the same as the family's files name and cut them."""


def attention_for(config: Any, wanted: str, device: torch.device, precision: str) -> str:
    """trainer.attention resolved for this model: eager where torch's kernel would leave out a soft cap (Gemma 2) or there is none (Mamba).

    UserError where the experiment names one that would compute something else, or cannot run here.
    """
    text = config.get_text_config()
    architecture: Any = AutoModelForCausalLM._model_mapping[type(config)]
    capped, window, chunk = (getattr(text, key, None) for key in ("attn_logit_softcapping", "sliding_window", "attention_chunk_size"))
    kinds = set(getattr(text, "layer_types", None) or (["sliding_attention"] if window else []))
    windows = f"sliding window of {window}" if "sliding_attention" in kinds and window else ""
    chunks = f"attention in chunks of {chunk}" if "chunked_attention" in kinds and chunk else ""
    flash = architecture._supports_flash_attn and not chunks  # transformers raises for rows longer than a chunk
    plain = not (chunks or capped or getattr(text, "use_bidirectional_attention", False))
    chosen = choose_attention(
        wanted, text.model_type, plain, flash, device, precision, bool(windows), bool(getattr(text, "attention_dropout", 0))
    )
    left_out = {
        "padded_sdpa": windows or chunks,
        "by_item": chunks,
        "varlen": chunks or (windows if varlen_leaves_out(bool(windows)) else ""),
        "flash_attention_2": chunks,
    }.get(chosen, "")
    ours = chosen in ("padded_sdpa", "by_item", "varlen")
    if not left_out and capped and (ours or chosen == "sdpa"):
        left_out = f"soft cap of {capped:g}"
    without_sdpa = (ours or chosen == "sdpa") and not architecture._supports_sdpa
    if wanted != "auto" and (left_out or without_sdpa):
        why = f"leaves out its {left_out}" if left_out else "has no place in it"
        raise UserError(f"trainer.attention: {wanted} {why} (model_type {config.model_type}); use auto or eager")
    return "eager" if left_out or without_sdpa else chosen


def check_attention(model_folder: str, wanted: str, has_gpu: bool, precision: str) -> None:
    """On the driver: UserError where the attention asked for by name computes something else than this model, or cannot run."""
    config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
    attention_for(config, wanted, torch.device("cuda" if has_gpu else "cpu"), precision)


def rows_mix(config: Any, row_tokens: int, longest: int) -> str | None:
    """Why items of this model must not share rows of `row_tokens` tokens when the longest has `longest`, known from its config; None: nothing is known.

    Read in transformers 5.19: long and dynamic rope choose frequencies by the longest item of a row; Llama 4 counts chunks and its temperature from the row's start, DeepSeek-V4 its blocks.
    What leaves no trace in a config is found by trying (trainer/step/isolation.py).
    """
    text = config.get_text_config()
    for rope in ropes_in(getattr(text, "rope_parameters", None)):
        kind = str(rope.get("rope_type", ""))
        short = rope.get("original_max_position_embeddings") or getattr(text, "max_position_embeddings", None)
        if (kind == "longrope" or "dynamic" in kind) and short and longest > short:
            return f"an item of {longest:,} tokens, beyond {short:,} positions, gives its whole row other rotary frequencies ({kind})"
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and row_tokens > chunk and "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        return f"attention in chunks of {chunk:,} tokens counts from the start of a row of {row_tokens:,}"
    scale = getattr(text, "floor_scale", None)
    if getattr(text, "attn_temperature_tuning", False) and scale and row_tokens >= scale:
        return f"attention's temperature changes every {scale:,} tokens from the start of a row of {row_tokens:,}"
    if getattr(text, "compress_rates", None):
        return "keys and values are compressed in blocks that count from the row's start"
    return None


def has_state_space(module: torch.nn.Module) -> bool:
    """Whether the model has layers that carry a state along the row (Mamba and its hybrids)."""
    return any(name.rpartition(".")[2] == "A_log" for name, _ in module.named_parameters())


def kernels_in_words() -> str:
    """Of state-space layers: what computes them here."""
    missing = [name for name in _KERNELS if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} cannot be imported, so transformers' own path" if missing else "kernels of mamba_ssm and causal_conv1d"


def tell_items_to_kernels(module: torch.nn.Module) -> None:
    """Gives the model `seq_idx` (1, T), the number of the item that each token belongs to: kernels of mamba-ssm reset their state by it.

    transformers hands it down to kernels that know it and drops it where its own path computes; the isolation check sees which.
    """

    def add(_: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = keywords.get("position_ids")
        if positions is not None and "seq_idx" not in keywords:
            keywords["seq_idx"] = ((positions == 0).cumsum(-1) - 1).to(torch.int32)
        return arguments, keywords

    module.register_forward_pre_hook(add, with_kwargs=True)


def folder_weights(folder: Path, written: Path | None = None) -> Weights:
    """The weights of a model folder by the network's names: as they lie there where the files use them, else turned (trainer/network/converted.py).

    `written`: where lay_out has put it; without it a group of tensors is turned as it is read. UserError where what belongs to the model beside its
    parameters is not there (trainer/network/buffers.py).
    """
    network, plain = make_network(folder), FolderWeights(folder)
    weights: Weights = FolderWeights(written) if written else plain
    if not written and not _laid_out(network, plain):
        from trainer.network.converted import ConvertedWeights

        weights = ConvertedWeights(folder, network)
    beside_parameters = read_buffers(network, plain)
    return With(weights, beside_parameters) if beside_parameters else weights


def lay_out(folder: Path, run_folder: Path) -> Path | None:
    """Writes the model as the network has it, where its files have it otherwise and that has not been done; by one process, before others read. Where it
    lies then; None: as it is."""
    network, plain = make_network(folder), FolderWeights(folder)
    if _laid_out(network, plain):
        return None
    from trainer.network.converted import ConvertedWeights, write_converted

    return write_converted(ConvertedWeights(folder, network), folder, run_folder)


def _laid_out(network: Any, files: FolderWeights) -> bool:
    """Whether the files use the network's names."""
    return {name for name, _ in network.named_parameters()} <= set(files.names())


def check_buffers(folder: Path) -> None:
    """UserError where a model folder is none that can be trained: found on the driver, without reading more than buffers."""
    network = make_network(folder)
    if buffers(network):
        read_buffers(network, FolderWeights(folder))


def folder_buffers(folder: Path) -> tuple[dict[str, torch.dtype], dict[str, Tensor]]:
    """What a model folder holds beside parameters: the dtype of what belongs to the model, and the constants."""
    network = make_network(folder)
    if not buffers(network) and not buffers(network, constant=True):
        return {}, {}
    files = FolderWeights(folder)
    return {name: value.dtype for name, value in read_buffers(network, files).items()}, read_constants(network, files)


def block_of(name: str) -> str:
    """ "model.layers.3" of "model.layers.3.mlp.up_proj.weight"; the name itself outside of blocks."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else name


def make_network(folder: Path | str) -> Any:
    """The architecture on the meta device: names and shapes."""
    return build_network(AutoConfig.from_pretrained(folder, trust_remote_code=False), f"model {folder}")


def build_network(config: Any, what: str) -> Any:
    """The same of a config; UserError where transformers knows no causal language model of its kind, or lacks something for it."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each family has its own way to say no
        why = "is no causal language model that transformers knows" if isinstance(error, ValueError) else "cannot be built"
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what}: model_type {config.model_type} {why}: {told[:200]}") from None


def file_layout(model_folder: str) -> Layout | None:
    """Turns some of the network's tensors (whole blocks) into the layout of the family's files, which vLLM and users expect; None: the same."""
    model = make_network(model_folder)
    named = dict(model.named_parameters()) | buffers(model) | buffers(model, constant=True)
    if revert_weight_conversion(model, {name: torch.empty_like(tensor) for name, tensor in named.items()}).keys() == named.keys():
        return None
    return lambda tensors: revert_weight_conversion(model, tensors)
