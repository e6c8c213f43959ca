"""Half fine-tuning through the whole trainer: each stage's committed and exported weights keep what it froze, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.experiments import tiny
from trainer.step.freeze import frozen_parameters
from trainer.store.weights import FolderWeights, FragmentWeights, Weights

EXPERIMENT = (
    tiny("half", 4, 8, 2, hidden=64, layers=2)
    + """\
base:
  - {{mix: {{replay_documents: 1}}, epochs: 2, batch_items: 4, rate: 3.0e-3, freeze_share: 0.5}}
arms:
  half:
    stages:
      - {{mix: {{train_questions: 1}}, epochs: 2, batch_items: 20, rate: 3.0e-3, template: alpaca, freeze_share: 0.5}}
      - {{mix: {{test_documents: 1}}, replay_share: 0.2, epochs: 2, batch_items: 2, rate: 3.0e-3, freeze_share: 0.5, freeze_round: 1}}
trainer: {{row_tokens: 256}}
"""
)


def check(folder: Path, num_workers: int) -> None:
    arm = json.loads((folder / "arms.json").read_text())["arms"]["half"]
    assert arm["template"] == "alpaca"  # the last stage trained no questions
    parent: Weights = FolderWeights(folder / "model")
    frozen_in = []
    for round_, key in zip((0, 1, 1), arm["stages"], strict=True):
        manifest = json.loads((folder / "stages" / key / "manifest.json").read_text())
        weights = FragmentWeights(folder / "stages" / key / "weights", manifest["shapes"], num_workers)
        frozen = frozen_parameters(manifest["shapes"], 0.5, 0, round_)
        for name in manifest["shapes"]:
            assert torch.equal(weights.read(name), parent.read(name).float()) == (name in frozen), name
        model = AutoModelForCausalLM.from_pretrained(folder / "stages" / key / "hf")
        assert all(torch.equal(weight.detach(), weights.read(name)) for name, weight in model.named_parameters())
        frozen_in.append(frozen)
        parent = weights
    assert frozen_in[0] != frozen_in[1] == frozen_in[2] and 0 < len(frozen_in[0]) < len(manifest["shapes"])


def test_alone_with_zero_2(tmp_path: Path, run_command: Any) -> None:
    (tmp_path / "half.yaml").write_text(EXPERIMENT.format(runs=tmp_path))
    done = run_command("trainer", str(tmp_path / "half.yaml"), "--no-ray", "--no-exam")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "half", 1)


@pytest.mark.slow
def test_two_workers_with_zero_3(ray_cluster: str, tmp_path: Path, run_command: Any) -> None:
    """Parameters that are sharded from the first moment (zero.Init)."""
    (tmp_path / "half.yaml").write_text(EXPERIMENT.format(runs=tmp_path))
    env = {"RAY_ADDRESS": ray_cluster, "DS_ACCELERATOR": "cpu"}
    done = run_command("trainer", str(tmp_path / "half.yaml"), "--no-exam", "trainer.zero_stage=3", "trainer.num_workers=2", env=env)
    assert done.returncode == 0, done.stderr + "".join(p.read_text()[-3000:] for p in (tmp_path / "half" / "logs").glob("*.log"))
    check(tmp_path / "half", 2)
