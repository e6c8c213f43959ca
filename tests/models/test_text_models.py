"""Folders of multimodal models: their text model is trained as any other, or they are refused in words before anything starts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cluster.cost.model_shape import read_shape
from console import UserError
from data.wording.tiny_tokenizer import make_tokenizer
from tests.models.chain import TEXTS, experiment
from trainer import run
from trainer.jobs.text_model import text_folder
from trainer.network.families import folder_weights
from trainer.network.flops import row_flops
from trainer.network.loading import load_into
from trainer.network.model import build_model
from trainer.network.text_config import positions, text_config

_ROLES = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
_SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
_QWEN = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
# class of transformers → what differs from the defaults of its inner config, of its tower, of itself
WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Gemma3ForConditionalGeneration": ({**_TEXT, **_SLIDING, "query_pre_attn_scalar": 32}, _TOWER, {"mm_tokens_per_image": 4}),
    "Gemma4ForConditionalGeneration": ({**_TEXT, **_SLIDING, "global_head_dim": 32, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}, {**_TOWER, "num_key_value_heads": 2, "head_dim": 16}, {}),
    "Qwen3_5ForConditionalGeneration": ({**_TEXT, **_QWEN}, {"hidden_size": 32, "intermediate_size": 64, "depth": 1, "num_heads": 2, "out_hidden_size": 64}, {}),
    "Llama4ForConditionalGeneration": ({**_TEXT, "num_local_experts": 2, "intermediate_size_mlp": 64}, {**_TOWER, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}, {}),
    "Mistral3ForConditionalGeneration": ({**_TEXT, "model_type": "mistral"}, {**_TOWER, "model_type": "pixtral", "head_dim": 16}, {"image_token_index": 10}),
}  # fmt: skip


def save_whole(name: str, folder: Path) -> Any:
    """A folder as on the hub; the model."""
    tokenizer = make_tokenizer(TEXTS, 400)
    text, tower, own = WHOLE[name]
    kind: Any = getattr(transformers, name)
    config = kind.config_class(text_config={**text, "vocab_size": len(tokenizer)}, vision_config=tower, **own, **_ROLES)
    torch.manual_seed(0)
    model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20, 90)[None], use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", WHOLE)
def test_the_text_model_is_the_whole_ones(name: str, tmp_path: Path) -> None:
    whole = save_whole(name, tmp_path / "whole")
    text = text_folder(tmp_path / "whole", tmp_path / "beside")
    assert text_folder(tmp_path / "whole", tmp_path / "beside") == text == text_folder(text, tmp_path / "beside")
    module: Any = build_model(str(text), "eager", torch.float32)
    load_into(module, folder_weights(text))
    ours = logits(module)
    assert torch.equal(ours, logits(whole))
    assert not any("vision" in key or "visual" in key for key in load_file(text / "model.safetensors"))
    reloaded, told = transformers.AutoModelForCausalLM.from_pretrained(text, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and torch.equal(logits(reloaded), ours)
    assert positions(text) == positions(tmp_path / "whole") == 256
    assert read_shape(text / "config.json") == read_shape(tmp_path / "whole" / "config.json")
    assert row_flops(text_config(text), [0, 5]) > 0
    module.lm_head.weight.data[20:90] += 0.01  # the twin: another text model is seen
    assert not torch.equal(logits(module), ours)


def test_its_parts_are_found_under_either_name(tmp_path: Path) -> None:
    """Gemma 3 as it lies there (language_model.model.…) and as transformers 5 names its parts; roles of tokens outside of the inner config."""
    whole = save_whole("Gemma3ForConditionalGeneration", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {re.sub(r"^language_model\.model\.", "model.language_model.", name): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((tmp_path / "config.json").read_text())
    for role in _ROLES:
        values["text_config"].pop(role, None)
    (tmp_path / "config.json").write_text(json.dumps(values | {"eos_token_id": [2, 3]}))
    text = text_folder(tmp_path, tmp_path / "beside")
    module = build_model(str(text), "eager", torch.float32)
    load_into(module, folder_weights(text))
    assert torch.equal(logits(module), logits(whole))
    assert text_config(text).eos_token_id == [2, 3] and text_config(text).tie_word_embeddings


def test_gemma_3n_without_its_towers(tmp_path: Path) -> None:
    """What would build its tower (timm) is not installed: its text model needs none of it."""
    tokenizer = make_tokenizer(TEXTS, 400)
    shared = {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 100,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "laurel_rank": 8,
    }
    inner = {**_TEXT, **_SLIDING, **shared, "activation_sparsity_pattern": [0.0, 0.0], "vocab_size": len(tokenizer)}
    config = transformers.Gemma3nConfig(text_config=inner, **_ROLES)
    torch.manual_seed(0)
    model = transformers.Gemma3nForCausalLM(config.get_text_config())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    save_file(renamed | {"model.vision_tower.x": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = text_folder(tmp_path, tmp_path / "beside")
    module = build_model(str(text), "eager", torch.float32)
    load_into(module, folder_weights(text))
    assert torch.equal(logits(module), logits(model))
    assert row_flops(text_config(text), [0, 5]) > 0


def test_long_documents_are_split_at_the_text_models_positions(tmp_path: Path) -> None:
    save_whole("Gemma3ForConditionalGeneration", tmp_path / "whole")
    values = json.loads((tmp_path / "whole/config.json").read_text())
    values["text_config"]["max_position_embeddings"] = 96
    (tmp_path / "whole/config.json").write_text(json.dumps(values))
    one = experiment(tmp_path, "split", tmp_path / "whole", long_documents="split")
    one.folder.mkdir(parents=True)
    arms = {"base": one.stages("base"), **{arm: one.stages(arm) for arm in one.arms}}
    prepared = [run.prepare(one.folder, one.data, one.model, one.trainer, arms, one.seed, False) for _ in range(2)]
    assert prepared[0].longest == 96 and prepared[0].split_documents
    assert prepared[0].keys == prepared[1].keys and prepared[0].model_folder == prepared[1].model_folder != str(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (transformers.Qwen2_5_VLConfig(), r"the text model \(qwen2_5_vl_text\) of qwen2_5_vl: .* is no causal language model"),
        (transformers.Phi4MultimodalConfig(), "model_type phi4_multimodal has a .* and no text model of its own"),
        (transformers.MllamaConfig(), "model_type mllama has layers in its text model that only images reach"),
        (transformers.Gemma3Config(), r"its files lack \d+ tensors of the text model \(gemma3_text\)"),
        (transformers.T5Config(), "model_type t5 is no causal language model that transformers knows"),
        (transformers.Gemma3nConfig(), r"its files lack \d+ tensors of the text model \(gemma3n_text\)"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_others_are_refused_in_words(config: Any, told: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    save_file({"something.else": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=told) as refused:
        text_folder(tmp_path, tmp_path / "beside")
    assert "\n" not in str(refused.value) and not any((tmp_path / "beside").glob("*"))
