"""Model folders that cannot be what they say: each refused in one line within two seconds, and its good twin taken."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from console import UserError
from data.tokens import load_tokenizer
from tests.conftest import ROOT
from tests.helpers.refusals import refusal
from trainer.config import ModelConfig, TinyModel
from trainer.network.model_check import check_files, check_model_folder, check_named
from trainer.network.model_tensors import check_tokens, embedding_rows
from trainer.network.resize import resized

SECONDS = 2.0
"""Of this process: other work on the machine does not count."""
PROJECTION = "model.layers.0.self_attn.q_proj.weight"
Values = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.network.model import make_tiny_model

    folder = tmp_path_factory.mktemp("good")
    make_tiny_model(folder, TinyModel(vocab_size=300, hidden_size=32, layers=2), ["a few words for a tokenizer"] * 3, seed=0)
    check_model_folder(folder)  # imports transformers, which the first to do so pays
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder: Path, change: Callable[[Values], Any]) -> None:
    path = folder / "model.safetensors"
    values = load_file(path)
    change(values)
    save_file({name: value.clone() for name, value in values.items()}, path, metadata={"format": "pt"})


def shards(folder: Path) -> None:
    values = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(values)}
    for file in set(names.values()):
        save_file({name: values[name] for name in values if names[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def older_single_file(folder: Path) -> None:
    shards(folder)


def older_shards(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def grown_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["Ebba", "crane"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def float8(values: Values) -> None:
    values[PROJECTION] = values[PROJECTION].to(torch.float8_e4m3fn)


def scales(values: Values) -> None:
    values[PROJECTION + "_scale"] = torch.ones(1)


QUANTISED = {"quant_method": "gptq", "bits": 4}
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "quantised by config": (lambda f: config(f, quantization_config=QUANTISED), "the weights are quantised .quant_method gptq."),
    "quantised inside": (lambda f: config(f, text_config={"quantization_config": QUANTISED}), "the weights are quantised"),
    "float8": (lambda f: weights(f, float8), "q_proj.weight is stored as F8_E4M3, no plain float"),
    "int8": (lambda f: weights(f, lambda v: v.update({PROJECTION: v[PROJECTION].to(torch.int8)})), "is stored as I8, no plain float"),
    "scales": (lambda f: weights(f, scales), "q_proj.weight_scale belongs to quantised weights"),
    "packed": (lambda f: weights(f, lambda v: v.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(2, dtype=torch.int32)})), "belongs to quantised weights"),
    "another output layer": (lambda f: config(f, tie_word_embeddings=True), "ties lm_head.weight to model.embed_tokens.weight, and the files hold two"),
    "a bias with no place": (lambda f: weights(f, lambda v: v.update({"model.layers.1.mlp.up_proj.bias": torch.ones(64)})), "1 tensors have no place in the network, model.layers.1.mlp.up_proj.bias"),
    "fewer layers": (lambda f: config(f, num_hidden_layers=1), "9 tensors have no place in the network, model.layers.1.input_layernorm.weight"),
    "more layers": (lambda f: config(f, num_hidden_layers=3), "the weights lack 9 of the model's parameters"),
    "no output layer": (lambda f: weights(f, lambda v: v.pop("lm_head.weight")), "the weights lack 1 of the model's parameters, lm_head.weight"),
    "another width": (lambda f: config(f, intermediate_size=96), r"mlp.down_proj.weight is \[32, \d+\] in the files and \[32, 96\] by config.json"),
    "an older single file": (older_single_file, "model.safetensors: lies beside model-00001-of-00002.safetensors and its index"),
    "older shards": (older_shards, "model-00001-of-00002.safetensors: lies beside model.safetensors and is another copy"),
    "a grown tokenizer": (grown_tokenizer, "the tokenizer knows 2 tokens that the embedding has no row for .it has 278; the first: 'Ebba'.; set model.resize_embeddings"),
    "no tokenizer": (no_tokenizer, "no tokenizer .no tokenizer.json.; copy"),
    "an encoder": (lambda f: config(f, model_type="t5", architectures=["T5Model"]), "transformers makes no causal language model of it"),
    "nonsense in config": (lambda f: config(f, num_attention_heads="four"), "transformers makes no causal language model of it"),
    "shards without their index": (lambda f: (shards(f), (f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").unlink()), "no model.safetensors, only model-00001-of-00002.safetensors and no model.safetensors.index.json"),
    "a GGUF file": (lambda f: (f / "model.safetensors").rename(f / "m.gguf"), "no model.safetensors, only m.gguf; make a folder of it with python -m trainer model convert"),
    "pointers of Git LFS": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "model.safetensors: is a pointer of Git LFS and not the file; run `git lfs pull`"),
    "a missing shard": (lambda f: (shards(f), (f / "model.safetensors").unlink(), (f / "model-00002-of-00002.safetensors").unlink()), "00002.safetensors: missing, and model.safetensors.index.json names it"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused_in_a_line(name: str, folder: Path) -> None:
    make, reason = WRONG[name]
    make(folder)
    start = time.process_time()
    said = refusal(lambda: check_model_folder(folder))
    assert time.process_time() - start < SECONDS and re.search(reason, said) and str(folder) in said


EARLY = [
    "shards without their index",
    "a GGUF file",
    "pointers of Git LFS",
    "quantised by config",
    "float8",
    "scales",
    "another output layer",
    "a grown tokenizer",
    "no tokenizer",
    "an older single file",
]


@pytest.mark.parametrize("name", EARLY)
def test_files_alone_show_it(name: str, folder: Path) -> None:
    """Before torch and transformers are imported."""
    WRONG[name][0](folder)
    with pytest.raises(UserError, match=WRONG[name][1]):
        check_named("model.name", ModelConfig(name=str(folder)))


def only_shards(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors").unlink()


def tied(folder: Path) -> None:
    weights(folder, lambda v: v.update({"lm_head.weight": v["model.embed_tokens.weight"].clone()}))
    config(folder, tie_word_embeddings=True)


def a_pad_token(folder: Path) -> None:
    """Special, beyond the embedding, and used by nothing: Llama 2's community tokenizers have one."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "<mine>"})
    tokenizer.save_pretrained(folder)


def old_names(folder: Path) -> None:
    """Buffers of old files, which transformers knows to leave out."""
    weights(folder, lambda v: v.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))


@pytest.mark.parametrize("make", [lambda f: None, only_shards, tied, a_pad_token, old_names])
def test_the_twins_are_taken(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    check_model_folder(folder)


def test_tokens_that_are_used_need_rows(folder: Path) -> None:
    a_pad_token(folder)
    rows = embedding_rows(check_files(folder))
    check_tokens(277, rows, "m")
    with pytest.raises(UserError, match="m: the records use token 278, and the embedding has 278 rows"):
        check_tokens(278, rows, "m")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("./models/llama/7b", "there is no folder"),
        ("~/models/llama", "there is no folder"),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B", "is an address; give the model as OWNER/NAME"),
        (__file__, "is a file; give the folder"),
    ],
)
def test_names_that_are_paths(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^model.name: .*{reason}"):
        check_named("model.name", ModelConfig(name=name))
    check_named("model.name", ModelConfig(name="Qwen/Qwen2.5-0.5B"))  # the twin: for the hub to answer


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(UserError, match="model.name: .* holds an adapter of peft and no model; merge it"):
        check_named("model.name", ModelConfig(name=str(folder)))


FETCH = "from pathlib import Path; from trainer.config import *; from trainer.jobs.hub import *; print(fetch_model(ModelConfig(name='acme/tiny'), Path({target!r})))"


@pytest.mark.parametrize("cached", [True, False])
def test_without_a_network_the_hubs_cache_is_read(cached: bool, good: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / ("0123456789" * 4)
    if cached:
        shutil.copytree(good, snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FETCH.format(target=str(tmp_path / "target"))]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    if cached:
        assert done.stdout.strip() == str(snapshot) and "taken from its cache" in done.stderr, done.stderr
    else:
        assert "UserError: model.name: acme/tiny is neither a folder nor reachable on the hub" in done.stderr


def test_embeddings_are_resized_on_request(folder: Path, tmp_path: Path) -> None:
    grown_tokenizer(folder)
    made = resized(folder, tmp_path / "resized")
    tensors = check_model_folder(made)
    before, after = load_file(folder / "model.safetensors"), load_file(made / "model.safetensors")
    assert embedding_rows(tensors) == len(load_tokenizer(str(made))) == 280
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][:278], before[name])
        assert torch.allclose(after[name][278:], before[name].mean(0).expand(2, -1), atol=1e-7)  # one rounding of a mean in fp32
    assert torch.equal(after[PROJECTION], before[PROJECTION])
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert resized(folder, tmp_path / "resized") == made and (made / "model.safetensors").stat().st_mtime_ns == stamp
    assert resized(made, tmp_path / "again") == made, "nothing to do"


EXPERIMENT = """name: x
data: {{root: {root}, sources: [{{path: t.jsonl, split: train, holds: documents}}, {{path: q.jsonl, split: test, holds: questions}}]}}
model: {{name: {model}, bos: {bos}}}
models: {{other: {{name: {other}, bos: {bos}}}}}
arms: {{read: {{stages: [{{mix: {{train_documents: 1}}, epochs: 1, batch_items: 1, rate: 1e-3}}]}}}}
exam: {{validation_share: 0.5}}
search: {{arm: read, algorithm: grid, space: {{arms.read.stages.0.rate: {{grid: [1e-3, 1e-4]}}}}}}
"""
COMMANDS = {
    "check": ("data", "check"),
    "plan": ("data", "plan"),
    "dry run": ("trainer", "--dry-run"),
    "search's dry run": ("tune", "--dry-run"),
}


def said_by(command: str, folder: Path, other: Path, bos: str = "auto") -> str:
    """What a command says, in the same words, of an experiment with these models; "" where it finds nothing."""
    root = folder.parent
    (root / "t.jsonl").write_text('{"text": "a few words"}\n')
    (root / "q.jsonl").write_text("".join(f'{{"question": "which words {n}?", "answer": "a few"}}\n' for n in range(9)))
    (root / "x.yaml").write_text(EXPERIMENT.format(root=root, model=folder, other=other, bos=bos))
    room, *words = COMMANDS[command]
    words = [*words, str(root / "x.yaml")] if words[0] != "--dry-run" else [str(root / "x.yaml"), *words]
    try:
        import_module(f"{room}.__main__").main([*words, *(["--gpus", "1xH100"] if room == "tune" else [])])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_plans_looks_at_the_folders(command: str, good: Path, folder: Path) -> None:
    assert said_by(command, folder, good) == ""
    WRONG["a bias with no place"][0](folder)  # transformers' network shows it
    assert re.search(WRONG["a bias with no place"][1], said_by(command, folder, good))
    assert re.search(WRONG["a bias with no place"][1], said_by(command, good, folder)), "a further model's folder"


@pytest.mark.parametrize("command", ["plan", "dry run"])
def test_a_token_without_a_row_that_the_records_use(command: str, folder: Path, good: Path) -> None:
    """Told before training: what begins an item stands beyond the embedding, where only special tokens may that nothing uses."""
    a_pad_token(folder)
    assert said_by(command, folder, good) == "", "the twin: nothing uses it"
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.save_pretrained(folder)
    assert "the records use token 279, and the embedding has 278 rows" in said_by(command, folder, good, bos="always")


def test_a_broken_tokenizer_is_no_missing_one(folder: Path, good: Path) -> None:
    """Not "estimated, for the model is not on this machine"."""
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in said_by("dry run", folder, good)
