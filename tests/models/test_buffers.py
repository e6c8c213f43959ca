"""What a model keeps beside its parameters: read, carried, merged to the bit; what is lost or cannot be carried is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from console import UserError
from data.curriculum.arm_config import Merge
from tests.models.families import save_model
from trainer.export.export import export_model
from trainer.merging.merge import Ingredient, _with_mergekit
from trainer.merging.residual.artefact import add_residual, make_residual
from trainer.merging.residual.models import open_model
from trainer.network import resize
from trainer.network.buffers import buffers, set_buffer
from trainer.network.families import folder_buffers, folder_weights, make_network
from trainer.network.loading import load_into
from trainer.network.model import build_model
from trainer.store.fragment_file import write_fragments
from trainer.store.weights import FragmentWeights

TEXTS = ["some words to make tokens of"]
CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"


def change_files(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("glm4-moe", tmp_path_factory.mktemp("glm") / "model", TEXTS)


def test_a_router_keeps_its_correction_to_the_bit(glm: Path, tmp_path: Path) -> None:
    """Through fragments and into hf/ in bf16: fp32 there as in the files."""
    network = build_model(str(glm), "eager", torch.bfloat16)
    load_into(network, folder_weights(glm))
    theirs = load_file(glm / "model.safetensors")[CORRECTION]
    held = buffers(network)[CORRECTION]
    assert held.dtype == torch.float32 and torch.equal(held, theirs)
    assert not torch.equal(theirs, theirs.bfloat16().float())  # the twin: rounded it would be another
    named = dict(network.named_parameters()) | buffers(network)
    write_fragments(tmp_path, 0, ((name, 0, tensor.flatten()) for name, tensor in named.items()))
    stored = FragmentWeights(tmp_path, {name: list(tensor.shape) for name, tensor in named.items()}, 1)
    export_model(stored, str(glm), tmp_path / "hf", torch.bfloat16)
    ours = load_file(tmp_path / "hf/model.safetensors")
    assert ours.keys() == load_file(glm / "model.safetensors").keys()
    assert torch.equal(ours[CORRECTION], theirs) and ours["lm_head.weight"].dtype == torch.bfloat16


def test_what_is_lost_is_noticed(glm: Path, tmp_path: Path) -> None:
    network = build_model(str(glm), "eager", torch.float32)
    shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    write_fragments(tmp_path, 0, ((name, 0, p.detach().flatten()) for name, p in network.named_parameters()))
    with pytest.raises(UserError, match=rf"lack 1 of the model's buffers, {CORRECTION} first"):
        load_into(network, FragmentWeights(tmp_path, shapes, 1))
    folder = save_model("glm4-moe", tmp_path / "model", TEXTS)
    change_files(folder, lambda tensors: tensors.pop(CORRECTION))
    with pytest.raises(UserError, match=rf"lack 1 of the model's buffers, {CORRECTION} first"):
        folder_weights(folder)


def test_whole_numbers_are_carried_as_far_as_fp32_holds_them(glm: Path, tmp_path: Path) -> None:
    """As DeepSeek-V4's table of experts by token."""
    network = build_model(str(glm), "eager", torch.float32)
    network.register_buffer("table", torch.zeros(2, 3, dtype=torch.int64))
    set_buffer(network, "table", torch.tensor([[0.0, 1, 2], [3, 4, 2.0**24]]))
    assert buffers(network)["table"].dtype == torch.int64 and buffers(network)["table"][1].tolist() == [3, 4, 2**24]
    folder = save_model("glm4-moe", tmp_path / "model", TEXTS)
    change_files(folder, lambda tensors: tensors.update({CORRECTION: torch.full((4,), 2**24 + 1)}))
    with pytest.raises(UserError, match=rf"{CORRECTION} is a buffer of torch.int64 with values that fp32 cannot hold: not supported"):
        folder_weights(folder)


@pytest.mark.parametrize("family", ["apertus", "minimax"])
def test_constants_of_the_library_are_no_obstacle(family: str, tmp_path: Path) -> None:
    """As the files have them; or, where these lack them, as the library makes them in fp32 – not in the bf16 of a network under ZeRO-3."""
    folder = save_model(family, tmp_path / "model", TEXTS)
    kept, constants = folder_buffers(folder)
    assert not kept and constants and not buffers(make_network(folder))
    change_files(folder, lambda tensors: [tensors.pop(name, None) for name in constants])
    made = folder_buffers(folder)[1]
    assert made.keys() == constants.keys() and all(torch.equal(made[name], constants[name]) for name in made)


def test_residuals_add_corrections_as_weights_and_never_round_them(glm: Path, tmp_path: Path) -> None:
    instruct, descendant = (save_model("glm4-moe", tmp_path / name, TEXTS) for name in ("instruct", "descendant"))
    change_files(instruct, lambda tensors: tensors[CORRECTION].add_(0.25))
    change_files(descendant, lambda tensors: [tensor.mul_(1.01) for name, tensor in tensors.items() if name != CORRECTION])
    residual = make_residual(open_model("instruct", instruct), open_model("base", glm), tmp_path / "residual")
    add_residual(residual, open_model("descendant", descendant), tmp_path / "out", dtype="bfloat16")
    ours = load_file(tmp_path / "out/hf/model.safetensors")
    base, wanted = (load_file(folder / "model.safetensors")[CORRECTION] for folder in (glm, instruct))
    assert torch.equal(ours[CORRECTION], base + (wanted - base)) and ours[CORRECTION].dtype == torch.float32
    assert ours["lm_head.weight"].dtype == torch.bfloat16 and not torch.equal(ours[CORRECTION], base)


def test_mergekit_is_not_given_what_it_would_round(glm: Path, tmp_path: Path) -> None:
    of, instruct, base = (Ingredient(name, glm, name, name, {}) for name in ("of", "instruct", "base"))
    merge = Merge(of="of", instruct="instruct", method="dare_ties")
    with pytest.raises(UserError, match=rf"method: dare_ties: {CORRECTION} belongs to the model .*; use method: residual"):
        _with_mergekit(tmp_path, merge, of, instruct, base, tmp_path / "out", 0)


def test_a_model_with_more_rows_keeps_its_corrections(tmp_path: Path) -> None:
    """MiniMax-M2's, which transformers rounds to the weights' bf16."""
    folder = save_model("minimax-m2", tmp_path / "model", TEXTS)
    change_files(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items() if "correction" not in n}))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    resize._write(folder, tmp_path / "grown", 1000)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "grown"))
    corrections = [name for name in before if "correction" in name]
    assert corrections and all(torch.equal(after[name], before[name]) and after[name].dtype == torch.float32 for name in corrections)
    assert after["lm_head.weight"].shape[0] == 1000 and after["lm_head.weight"].dtype == torch.bfloat16
