"""A tiny Llama and made items for the benchmarks that really train on CPUs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from data.curriculum.plan import Plan
from data.rows.token_store import TokenStore

VOCABULARY = 2048


def tiny_llama(attention: str, hidden: int = 128) -> Any:
    """A random untied Llama in fp32, the same at every call."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=2,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=8192,
        pad_token_id=0,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    return model.train()


def made_store(lengths: npt.NDArray[np.int64], answers: bool, vocabulary: int = VOCABULARY) -> TokenStore:
    """Random items of these lengths. `answers`: those below 300 tokens are questions, with loss on their last tenth only."""
    rng = np.random.default_rng(0)
    starts = np.where((lengths < 300) & answers, np.maximum(1, lengths - np.maximum(2, lengths // 10)), 1)
    return TokenStore(
        tokens=rng.integers(3, vocabulary, lengths.sum()).astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        loss_start=starts.astype(np.int32),
        sha256="made",
    )


def plan_of(num_items: int, batch: int) -> Plan:
    """All items in their order, in steps of `batch`."""
    return Plan(np.arange(num_items), np.append(np.arange(0, num_items, batch), num_items), "made")


def save_store(store: TokenStore, folder: Any) -> None:
    """As write_store leaves it, for the streams of data/rows/stream.py."""
    folder.mkdir(parents=True)
    items = len(store.lengths)
    store.tokens.tofile(folder / "tokens.bin")
    np.save(folder / "offsets.npy", store.offsets)
    np.save(folder / "loss_start.npy", store.loss_start)
    aids = {"is_document": np.ones(items, bool), "vocabulary": np.arange(VOCABULARY), "in_answers": np.zeros(VOCABULARY, bool)}
    np.savez(folder / "aids.npz", **aids, sentence_offsets=np.zeros(items + 1, np.int64), sentence_starts=np.zeros(0, np.int64))
    (folder / "manifest.json").write_text('{"key": "made", "sha256": "made", "format": 2}')
