"""Weights on disk: fragments, export, refusals."""

import json
import os
from pathlib import Path

import pytest
import torch

from console import UserError
from tests.numerics.ranks.steps import made_model
from trainer.export.model_shards import write_model
from trainer.network.loading import load_into
from trainer.store.fragment_file import write_fragments
from trainer.store.weights import FolderWeights, FragmentWeights


def fragments_of(model: torch.nn.Module, world_size: int, folder: Path) -> dict[str, list[int]]:
    """Cuts every parameter into world_size pieces, as ZeRO would."""
    for rank in range(world_size):
        pieces = []
        for name, p in model.named_parameters():
            flat = p.detach().flatten()
            size = -(-len(flat) // world_size)
            if len(flat[rank * size : (rank + 1) * size]):
                pieces.append((name, rank * size, flat[rank * size : (rank + 1) * size]))
        write_fragments(folder, rank, pieces)
    return {name: list(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_fragments_export_and_load_back(tmp_path: Path, world_size: int, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    model = made_model(tied=tied)
    shapes = fragments_of(model, world_size, tmp_path / "weights")
    write_model(FragmentWeights(tmp_path / "weights", shapes, world_size), tmp_path / "hf", torch.float32)
    model.config.save_pretrained(tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = torch.arange(3, 20)[None]
    assert torch.equal(loaded(ids).logits, made_model("sdpa", tied)(ids).logits)


def test_bf16_export_is_the_rounding_of_fp32(tmp_path: Path) -> None:
    model = made_model()
    shapes = fragments_of(model, 2, tmp_path / "weights")
    write_model(FragmentWeights(tmp_path / "weights", shapes, 2), tmp_path / "hf", torch.bfloat16)
    stored = FolderWeights(tmp_path / "hf")
    for name, p in model.named_parameters():
        assert torch.equal(stored.read(name), p.detach().bfloat16())


def test_export_in_shards_has_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.export.model_shards._MOST_BYTES", 20_000)
    model = made_model()
    shapes = fragments_of(model, 2, tmp_path / "weights")
    write_model(FragmentWeights(tmp_path / "weights", shapes, 2), tmp_path / "hf", torch.float32)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert set(json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())["weight_map"]) == set(shapes)
    other = made_model()
    for p in other.parameters():
        p.data.zero_()
    load_into(other, FolderWeights(tmp_path / "hf"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_missing_rank_is_seen(tmp_path: Path) -> None:
    model = made_model()
    shapes = fragments_of(model, 2, tmp_path)
    (tmp_path / "rank-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        FragmentWeights(tmp_path, shapes, 2)
    with pytest.raises(AssertionError, match="a piece is missing"):  # told of one rank only, it sees the hole
        FragmentWeights(tmp_path, shapes, 1).read("model.embed_tokens.weight")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = made_model()
    write_fragments(tmp_path, 0, [("some.other.weight", 0, torch.zeros(4))])
    with pytest.raises(UserError, match="lack"):
        load_into(model, FragmentWeights(tmp_path, {"some.other.weight": [4]}, 1))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="never read"):
        FolderWeights(tmp_path)


def test_slices_are_read_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(7, 5).bfloat16(), "b": torch.randn(11), "c": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = FolderWeights(tmp_path)
    counts: list[int] = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *a: counts.append(real(*a)) or counts[-1])
    assert torch.equal(weights.slice("a", 3, 13), tensors["a"].flatten()[3:13]) and counts == [20]
    assert weights.slice("b", 4, 4).numel() == 0 and torch.equal(weights.read("c"), tensors["c"])
    assert not torch.equal(weights.slice("a", 4, 14), tensors["a"].flatten()[3:13])  # the twin


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_file_that_ends_too_early_is_no_file(tmp_path: Path, cut: int) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(7, 5)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        FolderWeights(tmp_path)


def test_files_are_the_library_s_byte_for_byte(tmp_path: Path) -> None:
    """So a model keeps the hash that scores know it by, whatever writes it."""
    from safetensors.torch import save_file

    model = made_model()
    shapes = fragments_of(model, 2, tmp_path / "weights")
    kept = {"model.norm.weight": torch.float32}
    write_model(FragmentWeights(tmp_path / "weights", shapes, 2), tmp_path / "ours", torch.bfloat16, kept=kept)
    tensors = {name: p.detach().to(kept.get(name, torch.bfloat16)) for name, p in model.named_parameters()}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_ranks_get_shards_of_like_size() -> None:
    """The shapes of a 70B on 64 ranks: the busiest writes at most 1.1 of a 64th. A block of layers each would be 1.6."""
    from trainer.export.model_shards import Unit, cut_in_shards
    from trainer.store.shard_writer import TensorSpec

    layer = {"q": (8192, 8192), "o": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192)}
    layer |= {f"mlp.{n}": (28672, 8192) for n in range(3)} | {f"norm.{n}": (8192,) for n in range(2)}
    shapes = {f"{n}.{name}": shape for n in range(80) for name, shape in layer.items()} | {
        "e": (32000, 8192),
        "h": (32000, 8192),
        "n": (8192,),
    }
    assert len(shapes) == 723
    units = [Unit((name,), (TensorSpec(name, "BF16", shape),)) for name, shape in shapes.items()]
    shards = cut_in_shards(units, 64)
    sizes = [sum(unit.bytes for unit in shard) for shard in shards]
    assert len(shards) == 64 and max(sizes) <= 1.1 * sum(sizes) / 64
    assert len(cut_in_shards(units, 8)) == 32 and len(cut_in_shards(units[:3], 64)) == 2
