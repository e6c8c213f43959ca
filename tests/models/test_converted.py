"""Mixtures whose files hold experts one by one: turned as transformers turns them, written once, read by slices."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from console import UserError
from tests.models.families import save_model
from trainer.network.converted import ConvertedWeights, place_of
from trainer.network.families import folder_weights, lay_out, make_network
from trainer.store.weights import FolderWeights


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("mixtral", tmp_path_factory.mktemp("mixtral") / "model", ["some words to make tokens of"])


def last_byte_changed(file: Path) -> bytes:
    content = file.read_bytes()
    return content[:-1] + bytes([content[-1] ^ 1])


def test_as_the_library_turns_it_and_one_layer_at_a_time(mixtral: Path) -> None:
    theirs = dict(AutoModelForCausalLM.from_pretrained(mixtral).named_parameters())
    ours = ConvertedWeights(mixtral, make_network(mixtral))
    assert set(ours.names()) == theirs.keys() and not theirs.keys() <= set(FolderWeights(mixtral).names())
    for name in ours.names():
        assert torch.equal(ours.read(name), theirs[name].detach()), name
        assert sum(tensor.numel() for tensor in ours._last[1].values()) == theirs[name].numel()


def test_written_once_and_read_by_slices(mixtral: Path, tmp_path: Path) -> None:
    target = lay_out(mixtral, tmp_path)
    assert target is not None and target == place_of(mixtral, tmp_path)
    stamp = (target / "model.safetensors").stat().st_mtime_ns
    lay_out(mixtral, tmp_path)
    assert (target / "model.safetensors").stat().st_mtime_ns == stamp
    written, turned = folder_weights(mixtral, target), folder_weights(mixtral)
    assert isinstance(written, FolderWeights) and isinstance(turned, ConvertedWeights)
    for name in turned.names():
        assert torch.equal(written.slice(name, 3, 11), turned.read(name).flatten()[3:11]), name
    experts = next(name for name in turned.names() if "experts" in name)
    assert not torch.equal(written.slice(experts, 4, 12), turned.slice(experts, 3, 11))  # the twin
    (target / "model.safetensors").write_bytes(last_byte_changed(target / "model.safetensors"))
    lay_out(mixtral, tmp_path)  # damaged: made anew
    assert torch.equal(FolderWeights(target).read(experts), turned.read(experts))


def test_known_by_what_is_in_it(mixtral: Path, tmp_path: Path) -> None:
    """Equal bytes elsewhere, younger, are the same model; other bytes behind the same size and time are another."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(mixtral, elsewhere, copy_function=shutil.copyfile)
    place = lay_out(mixtral, run)
    assert place is not None and lay_out(elsewhere, run) == place
    weights = elsewhere / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(last_byte_changed(weights))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size and weights.stat().st_mtime_ns == before.st_mtime_ns
    other = lay_out(elsewhere, run)
    assert other is not None and other != place and place.is_dir()
    ours, theirs = (FolderWeights(one) for one in (place, other))
    assert not all(torch.equal(ours.read(name).view(torch.uint8), theirs.read(name).view(torch.uint8)) for name in ours.names())


def test_a_missing_expert_is_refused(mixtral: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((mixtral / "config.json").read_text())
    tensors = load_file(mixtral / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if ".w2." not in name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lack \d+ of the model's parameters, .*down_proj first"):
        ConvertedWeights(tmp_path, make_network(tmp_path))
