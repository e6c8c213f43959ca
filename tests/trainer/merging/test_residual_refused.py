"""Models, descendants and manifests that a residual is not made of, each refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from console import UserError
from tests.helpers.refusals import refusal
from tests.trainer.merging.residual_models import write_trio
from tests.trainer.merging.test_residual import restored, rewrite, set_config
from trainer.merging.residual.artefact import make_residual
from trainer.merging.residual.models import open_model
from trainer.merging.residual.saved import open_residual

BAD: dict[str, tuple[Any, str]] = {
    "architecture": (
        lambda f: set_config(f, model_type="mistral"),
        "another architecture than base: model_type is mistral here and llama there",
    ),
    "heads": (
        lambda f: set_config(f, num_key_value_heads=2),
        "k_proj.weight is .16, 32. in the files and .32, 32. by config.json; they do not belong together",
    ),
    "untied": (
        lambda f: set_config(f, tie_word_embeddings=True),
        "config.json ties lm_head.weight to model.embed_tokens.weight, and the files hold two different ones",
    ),
    "missing": (
        lambda f: rewrite(f, lambda w: w.pop("model.norm.weight")),
        r"the weights lack 1 of the model's parameters, model.norm.weight first",
    ),
    "extra": (lambda f: rewrite(f, lambda w: w.update(more=torch.ones(2))), "1 tensors have no place in the network, more first"),
    "shape": (
        lambda f: rewrite(f, lambda w: w.update({"model.norm.weight": torch.ones(31, dtype=torch.bfloat16)})),
        r"instruct: model.norm.weight is \[31\] in the files and \[32\] by config.json",
    ),
    "nan": (lambda f: rewrite(f, lambda w: w["model.norm.weight"].fill_(float("nan"))), "numbers that are not finite"),
    "quantised": (lambda f: set_config(f, quantization_config={"bits": 4}), "the weights are quantised"),
    "8 bits": (
        lambda f: rewrite(f, lambda w: w.update({"model.norm.weight": w["model.norm.weight"].to(torch.float8_e4m3fn)})),
        "model.norm.weight is stored as F8_E4M3, no plain float",
    ),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights are never read"),
    "code": (lambda f: set_config(f, model_type="mine", auto_map={"AutoConfig": "x.Y"}), "code of its own, which is never run"),
    "index": (
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}})),
        "lacks the tensor 'a' that the index promises",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_models_that_do_not_fit_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "untied")
    spoil, reason = BAD[fault]
    spoil(trio.instruct)
    said = refusal(lambda: make_residual(open_model("instruct", trio.instruct), open_model("base", trio.base), tmp_path / "r"))
    assert re.search(reason, said) and not (tmp_path / "r").exists()


@pytest.mark.parametrize("fault", ["architecture", "missing", "shape", "nan"])
def test_descendants_that_do_not_fit_are_refused(fault: str, tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "untied")
    BAD[fault][0](trio.descendant)
    with pytest.raises(UserError, match=re.escape("descendant") if fault != "nan" else "not finite"):
        restored(trio, tmp_path)
    assert not (tmp_path / "out").exists() and (tmp_path / "residual/manifest.json").exists()


def test_hostile_manifests_are_refused(tmp_path: Path) -> None:
    trio = write_trio(tmp_path / "models", "untied")
    make_residual(open_model("i", trio.instruct), open_model("b", trio.base), tmp_path / "r")
    good = json.loads((tmp_path / "r/manifest.json").read_text())
    for manifest, reason in (
        ({**good, "files": {"../models/base/config.json": {"bytes": 1, "sha256": ""}}}, "leads out of the folder"),
        ({**good, "format": 99}, "not the manifest of a residual"),
        ({**good, "vocabulary": {**good["vocabulary"], "instruct_rows": [[0, 10**12]]}}, "not the manifest of a residual"),
        ({**good, "vocabulary": {**good["vocabulary"], "rows": 3}}, "its vocabulary is not that of the weights"),
        ([], "not the manifest of a residual"),
    ):
        (tmp_path / "r/manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=reason):
            open_residual(tmp_path / "r")
    with pytest.raises(UserError, match="no residual lies there"):
        open_residual(tmp_path)
