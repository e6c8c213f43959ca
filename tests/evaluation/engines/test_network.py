"""What a config says: positions, long ropes, windows; and the list of what vLLM lacks, held against the vLLM that is installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from evaluation.engine import choose_examiner
from evaluation.engines.agreement import ROUNDING, Saying, agree, apart, moved, probes
from evaluation.engines.network import NOT_IN_VLLM, Network, read_network
from evaluation.engines.options import EngineOptions
from tests.models.families import FAMILIES

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def saved(folder: Path, name: str, **settings: Any) -> str:
    getattr(transformers, name)(**settings).save_pretrained(folder)
    return str(folder)


def test_positions_of_files_for_several_media(tmp_path: Path) -> None:
    """Gemma 3 from 4B on: the config of the text has them, and the hub's files do not even name what is the family's default."""
    text = {**TINY, "head_dim": 32, "max_position_embeddings": 777, "layer_types": ["sliding_attention", "full_attention"]}
    path = saved(tmp_path / "a", "Gemma3Config", text_config=text)
    assert read_network(path).positions == 777
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    del config["text_config"]["max_position_embeddings"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert read_network(path).positions == 131_072


def test_positions_of_others(tmp_path: Path) -> None:
    assert read_network(saved(tmp_path / "gpt2", "GPT2Config", n_positions=99)).positions == 99
    assert read_network(saved(tmp_path / "mamba", "MambaConfig")).positions is None
    (tmp_path / "own").mkdir()  # a family that transformers does not know
    (tmp_path / "own" / "config.json").write_text('{"model_type": "nobody", "text_config": {"max_position_embeddings": 55}}')
    assert read_network(str(tmp_path / "own")) == Network("nobody", 55)


def test_long_ropes(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors, "original_max_position_embeddings": 64}
    phi = {**TINY, "max_position_embeddings": 256, "original_max_position_embeddings": 64, "pad_token_id": 0}
    assert read_network(saved(tmp_path / "phi", "Phi3Config", **phi, rope_parameters=rope)).short == 64
    assert read_network(saved(tmp_path / "llama", "LlamaConfig", **TINY, rope_parameters=rope)).short == 64
    old = json.loads((tmp_path / "phi" / "config.json").read_text())  # as Phi-3's own files have it
    del old["rope_parameters"]
    (tmp_path / "phi" / "config.json").write_text(json.dumps({**old, "rope_theta": 1e4, "rope_scaling": {"type": "longrope", **factors}}))
    assert read_network(str(tmp_path / "phi")).short == 64
    other = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}  # grows beyond the positions only, and nothing longer is asked
    assert read_network(saved(tmp_path / "dynamic", "LlamaConfig", **TINY, rope_parameters=other)).short is None


@pytest.mark.parametrize("name", ["Qwen2Config", "Qwen3Config", "Qwen2MoeConfig"])
def test_windows_in_some_layers(tmp_path: Path, name: str) -> None:
    some = {**TINY, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    why = read_network(saved(tmp_path / "some", name, **some)).not_in_vllm(gpus=1)
    assert why and "sliding windows in some layers only" in why
    assert read_network(saved(tmp_path / "all", name, **{**some, "max_window_layers": 0})).not_in_vllm(gpus=1) is None
    assert read_network(saved(tmp_path / "none", name, **TINY)).not_in_vllm(gpus=1) is None


def test_who_examines() -> None:
    def chosen(model_type: str, **options: Any) -> str:
        return choose_examiner(Network(model_type), EngineOptions(**options))[0].__name__

    assert [chosen("llama"), chosen("mamba"), chosen("mamba", gpus=1), chosen("bamba", gpus=1)] == [
        "Examiner",
        "Generator",
        "Examiner",
        "Generator",
    ]
    assert [chosen("mamba", backend="vllm"), chosen("llama", backend="transformers")] == ["Examiner", "Generator"]


def test_the_list_is_this_vllms() -> None:
    """Should a family come back or another go: evaluation/engines/network.py and docs/models.md say so, and this fails until they do."""
    import torch
    import vllm._custom_ops  # loads the kernels
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.model_executor.models.registry import ModelRegistry

    assert vllm._custom_ops
    assert not hasattr(torch.ops._C, "selective_scan_fwd")  # the reason of all that have Mamba's scan
    supported = set(ModelRegistry.get_supported_archs())
    architectures = {name: arch if isinstance(arch, str) else arch[0] for name, arch in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    absent = {name for name, arch in architectures.items() if arch not in supported}
    anywhere = {name for name, (where, _) in NOT_IN_VLLM.items() if where == "anywhere"}
    assert anywhere <= absent
    assert not absent & (NOT_IN_VLLM.keys() - anywhere)

    def has_a_way(name: str) -> bool:  # vLLM's own, for what it has no code for
        network = getattr(transformers, architectures[name])
        return bool(network.is_backend_compatible() or network._can_set_attn_implementation())

    assert {name for name in absent if not has_a_way(name)} <= anywhere
    ours = {getattr(transformers, config).model_type for config, _ in FAMILIES.values()}
    assert ours & absent <= anywhere


def test_probes_fit_and_vary() -> None:
    for vocabulary, longest in ((151_936, 4096), (300, 64), (40, 16), (300, 7)):
        for ids in probes(vocabulary, longest):
            assert len(ids) + 4 < max(longest, 7) and min(ids) >= 0 and max(ids) < vocabulary
    assert len(set(probes(151_936, 4096)[0])) > 100
    assert probes(151_936, 4096)[0] != probes(151_936, 4096)[1]


def test_agreement_is_a_matter_of_roundings() -> None:
    said = [Saying([1, 2, 3, 4, 5], 1, -8.0), Saying([1, 2, 3, 4, 5, 6], 5, -2.0)]
    assert apart(said, [-8.0, -2.1]) == pytest.approx(0.1)
    assert agree(said, [-8.0 - 2e-3, -2.0], "float32") and not agree(said, [-8.0, -2.0 - 2e-3], "float32")  # nats a token: of four, of one
    nan = float("nan")
    assert agree([Saying([1, 2], 1, nan)], [nan], "float32") and not agree([Saying([1, 2], 1, nan)], [-1.0], "float32")
    assert not moved(said, [-8.0 + 4 * ROUNDING["float32"], -9.0], "float32")  # a continuation is not the same sequence under other weights
    assert moved(said, [-7.0, -2.0], "float32")
