"""Models: the tiny Llama made on the spot, and any causal language model of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig
from transformers.initialization import no_init_weights

from console import UserError
from data.wording.tiny_tokenizer import make_tokenizer
from trainer.config import TinyModel
from trainer.network.families import has_state_space, tell_items_to_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_tiny_model(folder: Path, tiny: TinyModel, texts: Iterable[str], seed: int) -> None:
    """Writes a random Llama and its tokenizer to `folder`, as any other model folder."""
    tokenizer = make_tokenizer(texts, tiny.vocab_size)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(tiny, len(tokenizer)))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_config(tiny: TinyModel, vocab_size: int) -> LlamaConfig:
    heads = tiny.hidden_size // tiny.head_size
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=tiny.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=tiny.head_size,
        max_position_embeddings=tiny.max_positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,  # vLLM swaps the weights of untied models without a new engine (evaluation/examiner.py)
    )


def build_model(folder: str, attention: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The architecture of `folder` or hub id without its weights; trainer/network/loading.py fills them in.

    UserError where the model needs code of its own: remote code is never run.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with no_init_weights():  # saves minutes at 7B, and under ZeRO-3 there is nothing to initialise yet
            model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: cannot be built: {str(error).splitlines()[0]}") from None
    model.tie_weights()
    model.config.use_cache = False
    if has_state_space(model):
        tell_items_to_kernels(model)
    return model  # type: ignore[no-any-return]


def matrices_and_rest(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters with weight decay (matrices, embeddings) and without: norms and biases, also where those of all heads or experts are stacked, a state space's
    rates, and an adapter's scales, which start at 1 and would take the network with them."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name: _is_matrix(name, p) for name, p in trained}
    return [p for name, p in trained if decays[name]], [p for name, p in trained if not decays[name]]


_SCALES = ("ia3_l", "A_log")


def _is_matrix(name: str, parameter: Any) -> bool:
    *modules, own = name.split(".")
    stacked = (
        own.endswith("bias")
        or any("norm" in part.lower() for part in (*modules[-1:], own))
        or any(part in _SCALES for part in (own, *modules[-2:]))
    )
    return len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and not stacked  # under ZeRO-3 the parameter itself is empty
