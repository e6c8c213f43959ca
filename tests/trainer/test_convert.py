"""GGUF files written on the spot become ordinary model folders; what cannot is refused by name."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from console import UserError
from data.tokens import load_tokenizer
from data.wording.begins import start_ids
from trainer.convert import convert_gguf

SIZE, LAYERS, HEADS, INNER = 64, 2, 2, 128
TOKENS = ["<unk>", "<s>", "</s>", "<|end|>", *(chr(n) for n in range(33, 127)), "Ġ", "Ġf", "il", "lm", "fil", "film", "Ġfilm"]
TYPES = [2, 3, 3, 3] + [1] * (len(TOKENS) - 4)


def write(path: Path, kind: GGMLQuantizationType, tied: bool = True, **facts: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A tiny Llama; returns its weights as the file means them, by GGUF's names."""
    writer = GGUFWriter(path, facts.pop("architecture", "llama"))
    for add, value in (
        (writer.add_block_count, LAYERS), (writer.add_context_length, 128), (writer.add_embedding_length, SIZE),
        (writer.add_feed_forward_length, INNER), (writer.add_head_count, HEADS), (writer.add_head_count_kv, HEADS),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, len(TOKENS)), (writer.add_rope_freq_base, 10000.0),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, facts.pop("pre", "smollm")), (writer.add_token_list, TOKENS),
        (writer.add_token_types, TYPES), (writer.add_token_merges, ["i l", "l m", "f il", "fil m", "Ġ f"]), (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2), (writer.add_license, "apache-2.0"), (writer.add_name, "Tiny"),
    ):  # fmt: skip
        add(value)
    for name, value in facts.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32 if isinstance(value, int) else writer.add_string)(
            name.replace("__", "."), value
        )
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), SIZE), "output_norm": (SIZE,), **({} if tied else {"output": (len(TOKENS), SIZE)})}
    for n in range(LAYERS):
        shapes |= {f"blk.{n}.{part}": (SIZE, SIZE) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{n}.ffn_gate": (INNER, SIZE), f"blk.{n}.ffn_up": (INNER, SIZE), f"blk.{n}.ffn_down": (SIZE, INNER)}
        shapes |= {f"blk.{n}.attn_norm": (SIZE,), f"blk.{n}.ffn_norm": (SIZE,)}
    meant = {}
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.05, shape).astype(np.float32) + (1 if "norm" in name else 0)
        if len(shape) == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(f"{name}.weight", weights)
            meant[name] = weights
        else:
            blocks = quantize(weights, kind)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
            meant[name] = dequantize(blocks, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


@pytest.mark.parametrize(("kind", "tied"), [(GGMLQuantizationType.Q8_0, True), (GGMLQuantizationType.Q4_1, False)])
def test_weights_are_what_the_file_means(
    kind: GGMLQuantizationType, tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly, in fp32; in bf16 they would be rounded once more, which is the twin. Tied weights stay one tensor."""
    meant = write(tmp_path / "m.gguf", kind, tied, tokenizer__ggml__add_bos_token=True, tokenizer__ggml__eot_token_id=3)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert ("lm_head.weight" in set(file.keys())) != tied
        assert np.array_equal(file.get_tensor("model.embed_tokens.weight"), meant["token_embd"])
        assert np.array_equal(file.get_tensor("model.layers.1.mlp.down_proj.weight"), meant["blk.1.ffn_down"])
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and model.dtype == torch.float32
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied
    assert model.config.rms_norm_eps == 1e-5 and model.generation_config.eos_token_id == [2, 3]
    assert not torch.equal(model.model.embed_tokens.weight.bfloat16().float(), model.model.embed_tokens.weight)
    said = capsys.readouterr().err
    assert "of the weights were kept in" in said and kind.name in said
    assert "license: apache-2.0" in (tmp_path / "out/README.md").read_text()


def test_the_tokenizer_begins_and_splits_as_the_file_says(tmp_path: Path) -> None:
    """transformers reads neither: it adds no bos, and takes spaces before a digit together with it."""
    for name, adds in (("with", True), ("without", False)):
        write(tmp_path / f"{name}.gguf", GGMLQuantizationType.F32, tokenizer__ggml__add_bos_token=adds)
        convert_gguf(tmp_path / f"{name}.gguf", tmp_path / name)
        tokenizer = load_tokenizer(str(tmp_path / name))
        assert start_ids(AutoTokenizer.from_pretrained(tmp_path / name)) == ([1] if adds else [])
        pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("film  42")]
        assert pieces == ["film", "ĠĠ", "4", "2"]
        assert len(tokenizer) == len(TOKENS), "no <|endoftext|> beyond the embedding, which transformers would add"


def test_whole_weights_are_kept_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "m.gguf", GGMLQuantizationType.BF16)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert "nothing was lost" in capsys.readouterr().err


def test_what_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    file, out = tmp_path / "m.gguf", tmp_path / "out"
    write(file, GGMLQuantizationType.F32)
    whole = file.read_bytes()
    bad: list[tuple[str, Callable[[], object]]] = [
        ("no GGUF file", lambda: file.write_bytes(b"PK\x03\x04 and so on")),
        ("no whole GGUF file|cannot read it", lambda: file.write_bytes(whole[: len(whole) // 2])),
        ("architecture 'rwkv7'", lambda: write(file, GGMLQuantizationType.F32, architecture="rwkv7")),
        ("one of 3 parts", lambda: write(file, GGMLQuantizationType.F32, split__count=3)),
        ("holds no model but 'adapter'", lambda: write(file, GGMLQuantizationType.F32, general__type="adapter")),
        ("cannot be read: No such file", lambda: file.unlink()),
    ]
    for reason, spoil in bad:
        spoil()
        with pytest.raises(UserError, match=reason):
            convert_gguf(file, out)
        assert not out.exists() and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    (out / "x").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        convert_gguf(file, out)


def test_the_command_refuses_in_one_line(tmp_path: Path, run_command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not")
    done = run_command("trainer", "model", "convert", str(tmp_path / "x.gguf"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].endswith("no GGUF file") and "Traceback" not in done.stderr
