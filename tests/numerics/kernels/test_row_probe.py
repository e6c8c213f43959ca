"""Packed rows at their real length: what depends on a row's longest item or on its start is known from the config, and found by trying."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from console import UserError
from trainer.kernels.attention import attention_inputs, leak
from trainer.kernels.row_probe import displacement, not_moved, probe_rows
from trainer.network.families import attention_for, rows_mix
from trainer.step.isolation import Exploded, Leaks, NotCausal, decide
from trainer.step.plain import PlainEngine

CPU = torch.device("cpu")
ROW, SHORT = 512, 128
"""Tokens of a row, and what the models below treat as short."""
_TINY = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip
_TINY |= {"max_position_embeddings": ROW, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1 + 0.1 * i for i in range(16)]}
_LONG |= {"long_factor": [2 + 0.5 * i for i in range(16)], "original_max_position_embeddings": SHORT}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": SHORT}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 128, "use_qk_norm": False}
_WINDOW = {"sliding_window": SHORT, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, **_WINDOW}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi3": ("Phi3Config", {"rope_parameters": _LONG, "original_max_position_embeddings": SHORT}),
    "dynamic": ("LlamaConfig", {"rope_parameters": _DYNAMIC, "max_position_embeddings": SHORT}),
    "chunks": ("Llama4TextConfig", {**_EXPERTS, "attention_chunk_size": SHORT, "attn_temperature_tuning": False, "no_rope_layers": [1, 1]}),
    "temperature": ("Llama4TextConfig", {**_EXPERTS, "attention_chunk_size": 8192, "floor_scale": SHORT, "attn_scale": 1.0, "no_rope_layers": [0, 0]}),
}  # fmt: skip
SOUND, BY_LENGTH, BY_PLACE = ("llama", "gemma3", "mixtral"), ("phi3", "dynamic"), ("chunks", "temperature")


def engine_of(name: str, dtype: torch.dtype = torch.float32) -> PlainEngine:
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**_TINY, **settings})
    return PlainEngine(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype), (0.9, 0.95), 0.1, 0.0
    )


def logits_of(engine: PlainEngine) -> Any:
    def compute(input_ids: Any, cu_seqlens: Any, positions: Any = slice(None)) -> torch.Tensor:
        places = np.concatenate([np.arange(n) for n in np.diff(cu_seqlens)])
        with torch.no_grad():
            return engine.forward(
                input_ids=torch.as_tensor(input_ids)[None], position_ids=torch.as_tensor(places)[None], use_cache=False,
                **attention_inputs("sdpa", cu_seqlens, CPU),
            ).logits[0][positions]  # fmt: skip

    return compute


def moved(name: str, longest: int, precision: str = "fp32") -> float:
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return displacement(logits_of(engine_of(name, dtype)), _TINY["vocab_size"], ROW, longest, typical=name == "mixtral")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*SOUND, *BY_LENGTH, *BY_PLACE])
def test_a_full_row_shows_what_twenty_tokens_do_not(name: str, precision: str) -> None:
    if precision == "fp32":  # what was tried before
        assert leak(logits_of(engine_of(name)), _TINY["vocab_size"]) < 1e-5
    found = moved(name, 400, precision)
    assert found <= not_moved(precision) if name in SOUND else found > not_moved(precision)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_items_within_the_original_positions_share_rows(name: str) -> None:
    """The twin: it is the long item that spoils a row, so rows without one stay packed."""
    assert moved(name, SHORT) <= not_moved("fp32")
    config = engine_of(name).module.config
    assert rows_mix(config, ROW, SHORT) is None and "rotary frequencies" in str(rows_mix(config, ROW, SHORT + 1))


def test_rows_no_longer_than_a_chunk_are_packed() -> None:
    for name, told in (("chunks", "chunks of 128 tokens"), ("temperature", "every 128 tokens")):
        config = engine_of(name).module.config
        assert told in str(rows_mix(config, ROW, 20)) and rows_mix(config, SHORT - 1, 20) is None


@pytest.mark.parametrize("name", [*SOUND, *BY_LENGTH, *BY_PLACE])
def test_the_decision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = engine_of(name)
    arguments = ("sdpa", engine.module.config, "fp32", ROW, 400)
    assert decide(engine, "auto", *arguments).one_item == (name not in SOUND)
    monkeypatch.setattr("trainer.step.isolation.rows_mix", lambda *_: None)  # nothing known: found by trying
    assert decide(engine, "auto", *arguments).one_item == (name not in SOUND)
    if name not in SOUND:
        with pytest.raises(Leaks, match="differ by .* with its place in a row of 512 tokens"):
            decide(engine, "packed", *arguments)


def test_probe_rows_keep_to_their_lengths() -> None:
    for row_tokens in (16, 40, 100, 2048):
        for longest in (1, 7, 30, row_tokens):
            items, rows = probe_rows(50, row_tokens, longest)
            assert max(map(len, items.values())) <= longest
            assert row_tokens < 64 or all(len(row.input_ids) <= row_tokens for row in rows)
            for row in rows:
                for name, starts in row.starts.items():
                    for start in starts:
                        assert np.array_equal(row.input_ids[start : start + len(items[name])], items[name]) and start in row.cu_seqlens


@pytest.mark.parametrize("wanted", ["padded_sdpa", "varlen", "flash_attention_2"])
def test_attention_that_leaves_something_out_or_cannot_run_is_refused(wanted: str) -> None:
    """By name; `auto` takes one that computes what the model means."""
    for name, told, taken in (("gemma3", "sliding window of 128", "by_item"), ("chunks", "attention in chunks of 128", "sdpa")):
        config = engine_of(name).module.config
        if wanted == "padded_sdpa":
            with pytest.raises(UserError, match=f"trainer.attention: padded_sdpa leaves out its {told}"):
                attention_for(config, wanted, CPU, "fp32")
        else:
            with pytest.raises(UserError, match=f"trainer.attention: {wanted} needs a GPU and trainer.precision bf16"):
                attention_for(config, wanted, CPU, "fp32")
        assert attention_for(config, "auto", CPU, "fp32") == taken
    with pytest.raises(UserError, match="trainer.attention: by_item leaves out its attention in chunks of 128"):
        attention_for(config, "by_item", CPU, "fp32")


def test_what_a_model_hands_to_attention_is_not_dropped() -> None:
    """The second line: a family whose config does not tell of its window."""
    engine = engine_of("gemma3")
    engine.module.set_attn_implementation("padded_sdpa")  # type: ignore[operator]
    with pytest.raises(UserError, match="leaves out the model's sliding window"):
        engine.forward(input_ids=torch.arange(8)[None], use_cache=False, **attention_inputs("padded_sdpa", np.array([0, 8]), CPU))


@pytest.mark.parametrize("packing", ["auto", "one_item"])
def test_what_reads_both_ways_or_counts_otherwise_is_refused(packing: Any) -> None:
    """BERT as it comes from the hub; RoBERTa as a decoder, whose positions begin at 2. The twin: BERT as a decoder is trained."""
    small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}

    def decided(kind: str, times: float = 1.0, **settings: Any) -> Any:
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**small, **settings)
        engine: Any = PlainEngine(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"), (0.9, 0.95), 0.1, 0.0)
        with torch.no_grad():
            for parameter in engine.module.parameters():
                parameter.mul_(times)
        return decide(engine, packing, "eager", config, "fp32", 64, 32)

    with pytest.raises(NotCausal, match="its tokens see those behind them"):
        decided("BertConfig")
    with pytest.raises(NotCausal, match="does not count its positions from 0"):
        decided("RobertaConfig", is_decoder=True)
    assert decided("BertConfig", is_decoder=True)
    for times in (1e20, float("nan")):
        with pytest.raises(Exploded, match="lower the rate"):
            decided("LlamaConfig", times)
