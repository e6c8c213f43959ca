"""Models: the tiny Llama made on the spot, and any causal language model of transformers."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from console import UserError
from trainer.config import TinyModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts; special tokens <pad> 0, <s> 1, </s> 2. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # A name at the start of a text must be the token it is in the middle of a question: tiny models cannot afford to learn each word twice.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_tiny_model(folder: Path, tiny: TinyModel, texts: Iterable[str], seed: int) -> None:
    """Writes a random Llama and its tokenizer to `folder`, as any other model folder."""
    tokenizer = make_tokenizer(texts, tiny.vocab_size)
    heads = tiny.hidden_size // tiny.head_size
    config = LlamaConfig(
        vocab_size=len(tokenizer),
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
        tie_word_embeddings=False,  # vLLM swaps the weights of untied models without a new engine (evaluation/engine.py)
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_model(folder: str, attention: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The architecture of `folder` or hub id with random weights; trainer/weights.py fills them in.

    UserError where the model needs code of its own: remote code is never run.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: cannot be built: {str(error).splitlines()[0]}") from None
    model.config.use_cache = False
    return model  # type: ignore[no-any-return]


def matrices_and_rest(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters with weight decay (matrices, embeddings) and without (norms, biases)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    shape = [tuple(getattr(p, "ds_shape", p.shape)) for p in trained]  # under ZeRO-3 p itself is empty
    return [p for p, s in zip(trained, shape, strict=True) if len(s) > 1], [p for p, s in zip(trained, shape, strict=True) if len(s) <= 1]


def texts_for_tokenizer(records: dict[str, list[Any]]) -> Iterator[str]:
    """Every text that training shows, as templates word it."""
    from data.records import Question
    from data.templates import document_text, question_text

    for rows in records.values():
        for record in rows:
            yield question_text(record) if isinstance(record, Question) else document_text(record)
