"""Adapters: settings are refused in one line, merging gives the adapter's own logits for every kind and family, and a run leaves ordinary models."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from console import UserError
from data.ground.adapters import KINDS, Adapter
from experiment import load_experiment
from experiment_yaml import ExperimentError
from tests.conftest import ROOT
from tests.helpers.experiments import tiny
from tests.helpers.networks import Held
from tests.models.families import FAMILIES, save_model
from trainer.adapter.adapter import MergedWeights, check_adapter, inject, trained_parameters, write_adapter
from trainer.adapter.reach import adapted
from trainer.config import ModelConfig, TinyModel, TrainerConfig
from trainer.network.families import folder_weights
from trainer.network.loading import load_into
from trainer.network.model import build_model
from trainer.step.fits import check_planned

DEMO = ROOT / "experiments" / "bios_cpu.yaml"
IDS = torch.arange(5, 25)[None]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.adapter.rr=8", "override trainer.adapter.rr=8: trainer.adapter: rr: unknown key of a lora adapter; did you mean r?"),
        ("trainer.adapter.r=0", "trainer.adapter.r: input should be greater than or equal to 1"),
        ("trainer.adapter={type: prefix_tuning}", "trainer.adapter: type: 'prefix_tuning' is no adapter that can be merged"),
        ("trainer.adapter={init: pissa}", "trainer.adapter: init: 'pissa' changes the model before training"),
        ("trainer.adapter={type: ia3, r: 3}", "trainer.adapter: r: unknown key of a ia3 adapter"),
        ("trainer.adapter={dropout: 1.0}", "trainer.adapter: dropout: 1.0 is no share below 1"),
        ("trainer.adapter={dropout: much}", "trainer.adapter: dropout: 'much' is no share below 1"),
        ("arms.pit.adapter=lora", "arms.pit.adapter: 'lora' is neither full"),
        ("arms.pit.adapter={alpha: 4, lora_alpha: 4}", "arms.pit.adapter: alpha: given twice, as lora_alpha too"),
        ("arms.pit.adapter={target_modules: []}", "arms.pit.adapter: target_modules: is empty"),
        ("base.0={mix: {replay_documents: 1}, epochs: 1, batch_items: 4, rate: 1e-3, freeze_share: 0.5, adapter: {r: 2}}", "freeze_share: an adapter"),
    ],
)  # fmt: skip
def test_refused_in_one_line(override: str, told: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        load_experiment(DEMO, [override])
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_stage_before_arm_before_experiment() -> None:
    def ranks(*overrides: str) -> list[int | None]:
        stages = load_experiment(DEMO, list(overrides)).stages("pit")
        return [stage.adapter.settings()["r"] if stage.adapter else None for stage in stages]

    whole = ranks()
    assert set(whole) == {None}
    assert set(ranks("trainer.adapter.r=8")) == {8}
    own = len(load_experiment(DEMO).stages("pit")) - len(load_experiment(DEMO).base)
    assert ranks("arms.pit.adapter.r=4") == [None] * (len(whole) - own) + [4] * own
    assert ranks("trainer.adapter.r=8", "arms.pit.adapter=full") == [8] * (len(whole) - own) + [None] * own


def test_another_adapter_is_another_stage() -> None:
    from trainer.store.stages import stage_key

    def key(*overrides: str) -> str:
        experiment = load_experiment(DEMO, list(overrides))
        return stage_key("parent", experiment.stages("pit")[-1], "plan", "tokens", experiment.trainer, "fp32", None, 0)

    keys = [key(), key("trainer.adapter.r=8"), key("trainer.adapter.r=4"), key("trainer.adapter={r: 8, use_dora: true}")]
    assert len(set(keys)) == 4 and key("trainer.adapter.r=8") == key("trainer.adapter={r: 8}") == key("arms.pit.adapter.r=8")
    assert key("trainer.packing=one_item") == keys[0]  # the same weights, up to rounding


def test_the_keys_are_pefts() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType

    for kind, keys in KINDS.items():
        known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind.upper()]])}
        assert keys <= known, (kind, keys - known)
        assert not PEFT_TYPE_TO_TUNER_MAPPING[PeftType[kind.upper()]].uses_shared_state  # a module is merged with what is in it


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, position_ids=torch.arange(20)[None], use_cache=False).logits[0]  # type: ignore[no-any-return]


CASES: list[tuple[str, dict[str, Any]]] = [(family, {}) for family in FAMILIES] + [
    ("qwen3", {"use_dora": True}), ("qwen3", {"use_rslora": True, "rank_pattern": {"q_proj": 4}}), ("qwen3", {"embeddings": True}),
    ("qwen3", {"bias": "all"}), ("qwen2", {"bias": "lora_only"}), ("qwen3", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("qwen3", {"target_modules": r".*\.[kv]_proj"}), ("qwen3", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    ("qwen3", {"type": "loha", "r": 4}), ("qwen3", {"type": "lokr", "r": 4}), ("qwen3", {"type": "ia3", "feedforward_modules": []}),
    ("mixtral", {"r": 4, "rank_pattern": {"w2": 8}}),
    ("qwen3", {"type": "oft", "oft_block_size": 4}), ("qwen3", {"type": "hra", "r": 4}), ("qwen3", {"type": "miss", "r": 4}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_model(name, root / name, ["some words to make tokens of"]) for name in FAMILIES}


@pytest.mark.parametrize(("family", "settings"), CASES, ids=str)
def test_merged_is_what_the_adapter_computes(folders: dict[str, Path], family: str, settings: dict[str, Any]) -> None:
    folder, adapter = folders[family], Adapter.model_validate(settings)
    module = build_model(str(folder), "eager", torch.float32)
    parent = folder_weights(folder)
    load_into(module, parent)
    before = logits(module)
    inject(module, adapter, 0, 0)
    trained = trained_parameters(module)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    wanted = logits(module)
    merged = MergedWeights(str(folder), adapter, parent, Held({name: p.detach() for name, p in trained.items()}))
    plain = build_model(str(folder), "eager", torch.float32)
    load_into(plain, merged)
    scale = float(wanted.abs().max())
    # one product more or less in fp32; rotations (oft, hra) solve small systems
    torch.testing.assert_close(logits(plain), wanted, rtol=0, atol=2e-5 * scale)
    assert not any("lm_head" in name for name in trained) or settings
    assert (wanted - before).abs().max() > 1e-3 * scale  # the twin: without the adapter it is another model


@pytest.mark.parametrize(
    ("family", "settings", "zero_stage", "told"),
    [
        ("qwen2.5-tied", {"embeddings": True}, 2, "tied"),
        ("gemma3", {"target_modules": ["embed_tokens"]}, 2, "tied"),
        ("qwen3", {"embeddings": True}, 3, "trainer.zero_stage 0, 1 or 2"),
        ("qwen3", {"target_modules": ["nowhere"]}, 2, "nowhere"),
        ("mamba", {"target_modules": ["out_proj"]}, 2, "out_proj"),
        ("qwen3", {"type": "oft", "oft_block_size": 4, "coft": True}, 1, "trainer.zero_stage 0"),
        ("qwen3", {"rank_pattern": {"vproj": 4}}, 2, "rank_pattern: 'vproj' names nothing that is adapted here"),
        ("mixtral", {"rank_pattern": {"w1": 6}}, 2, "w1 and w3 are one parameter"),
        ("mixtral", {"alpha_pattern": {"w1": 6, "w3": 4}}, 2, "w1 and w3 are one parameter"),
        ("mixtral", {"rank_pattern": {"experts.3.w2": 8}}, 2, "names nothing that is adapted"),
        ("mixtral", {"exclude_modules": ["w3"]}, 2, "w1 and w3 are one parameter"),
        ("mixtral", {"target_modules": r".*\.w1"}, 2, "w1 and w3 are one parameter"),
        ("mixtral", {"use_dora": True}, 2, "exclude_modules: [experts, gate]"),
    ],
    ids=str,
)
def test_impossible_combinations(folders: dict[str, Path], family: str, settings: dict[str, Any], zero_stage: int, told: str) -> None:
    with pytest.raises(UserError) as refused:
        check_adapter(Adapter.model_validate(settings), str(folders[family]), zero_stage)
    assert str(refused.value).startswith("adapter: ") and told in str(refused.value) and "\n" not in str(refused.value)


def ranks(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Of what is adapted, by whole names."""
    with torch.device("meta"):
        module = build_model(str(folder), "eager", torch.float32)
    inject(module, Adapter.model_validate({"r": 4, **settings}), 0, 0, empty=True)
    return {name: layer.r["default"] for name, layer in adapted(module).items()}


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("mixtral", {"target_modules": ["w2"], "rank_pattern": {"w2": 32}}, {(0, "experts.down_proj"): 32, (1, "experts.down_proj"): 32}),
        ("mixtral", {"target_modules": ["w1", "w3"], "rank_pattern": {"w[13]": 6}}, {(0, "experts.gate_up_proj"): 12, (1, "experts.gate_up_proj"): 12}),
        ("mixtral", {"target_modules": ["w2"], "layers_to_transform": [1]}, {(1, "experts.down_proj"): 4}),
        ("mixtral", {"target_modules": r".*\.0\..*\.(experts\.\d+\.w2|q_proj)"}, {(0, "self_attn.q_proj"): 4, (0, "experts.down_proj"): 4}),
        ("mixtral", {"target_modules": ["q_proj", "w2", "gate"], "exclude_modules": ["experts", "gate"]}, {(0, "self_attn.q_proj"): 4, (1, "self_attn.q_proj"): 4}),
        ("qwen3-moe", {"target_modules": ["gate"], "rank_pattern": {"layers.1.mlp.gate": 2}}, {(0, "gate.weight"): 4, (1, "gate.weight"): 2}),
        ("qwen3-moe", {"target_modules": ["gate_proj", "up_proj"]}, {(0, "experts.gate_up_proj"): 8, (1, "experts.gate_up_proj"): 8}),
    ],
    ids=str,
)  # fmt: skip
def test_experts_are_adapted_as_the_names_of_the_files_say(
    folders: dict[str, Path], family: str, settings: dict[str, Any], expected: dict[tuple[int, str], int]
) -> None:
    found = {(int(name.split(".")[2]), ".".join(name.split(".")[-2:])): r for name, r in ranks(folders[family], settings).items()}
    assert found == expected


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mixtral", {"rank_pattern": {"gate_up_proj": 6}}),
        ("qwen3-moe", {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {"gate": 3}}),
        ("mixtral", {"target_modules": ["w2"], "layers_to_transform": [1]}),
        # the first that matches counts, and peft's files sort them: read again by the given names they would be others
        ("qwen3", {"rank_pattern": {"v_proj": 8, "layers.0.self_attn.v_proj": 2}, "alpha_pattern": {"q_proj": 3}}),
    ],
    ids=str,
)
def test_a_written_adapter_is_read_again(folders: dict[str, Path], tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    from peft import PeftModel

    folder, adapter = folders[family], Adapter.model_validate({"r": 4, **settings})
    module, parent = build_model(str(folder), "eager", torch.float32), folder_weights(folder)
    load_into(module, parent)
    before = logits(module)
    inject(module, adapter, 0, 0)
    for parameter in trained_parameters(module).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trained = Held({name: parameter.detach() for name, parameter in trained_parameters(module).items()})
    write_adapter(MergedWeights(str(folder), adapter, parent, trained), tmp_path)
    plain = build_model(str(folder), "eager", torch.float32)
    load_into(plain, parent)
    again = logits(PeftModel.from_pretrained(plain, str(tmp_path)))
    wanted = logits(module)
    torch.testing.assert_close(again, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))  # as above
    assert (again - before).abs().max() > 1e-3 * wanted.abs().max()


def test_what_peft_writes_into_reaches_no_key(folders: dict[str, Path]) -> None:
    """Two equal stages of two arms on a mixture stay equal when one of them has been checked."""
    from trainer.store.stages import stage_facts

    def stage() -> Any:
        overrides = ["trainer.adapter={r: 4, rank_pattern: {w2: 8}, alpha_pattern: {q_proj: 4}}"]
        return load_experiment(DEMO, overrides).stages("pit")[-1]

    one, other = stage(), stage()
    check_adapter(one.adapter, str(folders["mixtral"]), 2)
    assert stage_facts(one) == stage_facts(other) and one == other


def test_people_are_told_what_is_reached(folders: dict[str, Path], tmp_path: Path) -> None:
    def told(folder: Path, **settings: Any) -> str:
        return check_adapter(Adapter.model_validate(settings), str(folder), 2).partition("; in ")[2]

    assert told(folders["qwen3"]) == "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    assert told(folders["mixtral"]) == "q_proj, k_proj, v_proj, o_proj, gate (router), experts.down_proj, experts.gate_up_proj"
    assert told(folders["mixtral"], type="loha").endswith("o_proj, but for mlp.gate, experts.gate_up_proj, experts.down_proj")
    dense = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4}
    transformers.Qwen3MoeConfig(**dense, moe_intermediate_size=64, mlp_only_layers=[0]).save_pretrained(tmp_path)
    assert told(tmp_path).endswith(", but for mlp.gate_proj, mlp.up_proj, mlp.down_proj")  # peft takes these names for the experts'


def test_a_dry_run_refuses_too(folders: dict[str, Path]) -> None:
    adapter = Adapter(r=4, target_modules=["nowhere"])
    stage = load_experiment(DEMO).stages("pit")[-1].model_copy(update={"adapter": adapter})
    for model in (ModelConfig(tiny=TinyModel()), ModelConfig(name=str(folders["qwen3"]))):
        with pytest.raises(UserError, match=r"arms\.pit: adapter: .*nowhere"):
            check_planned({"base": [], "pit": [stage]}, model, TrainerConfig())


EXPERIMENT = (
    tiny("adapters", 4, 8, 2, hidden=64, layers=2)
    + """\
base:
  - {{mix: {{replay_documents: 1}}, epochs: 2, batch_items: 4, rate: 3.0e-3}}
arms:
  full:
    stages: &stages
      - {{mix: {{train_questions: 1}}, epochs: 2, batch_items: 20, rate: 3.0e-3}}
      - {{mix: {{test_documents: 1}}, epochs: 4, batch_items: 2, rate: 3.0e-3}}
  lora:
    adapter: {{r: 4, alpha: 16}}
    stages: *stages
trainer: {{row_tokens: 256, num_workers: 2, checkpoint: {{every_steps: 1}}}}
exam: {{compare_to: full, modes: [closed], base_modes: [closed]}}
"""
)


def check_run(folder: Path) -> None:
    """Arms share the base; the LoRA arm's stages are ordinary models, each the one before with its own adapter merged in."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    arms = json.loads((folder / "arms.json").read_text())["arms"]
    full, lora = arms["full"]["stages"], arms["lora"]["stages"]
    assert full[0] == lora[0] and full[1] != lora[1] and arms["full"]["plan_hashes"] == arms["lora"]["plan_hashes"]
    for before, key in itertools.pairwise(lora):
        stage = folder / "stages" / key
        files = json.loads((stage / "manifest.json").read_text())["files"]
        assert {name for name in files if name.startswith("adapter/")} == {
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
        }
        assert not (stage / "adapter-fragments").exists() and not (stage / "checkpoints").exists()
        own = AutoModelForCausalLM.from_pretrained(stage / "hf")
        parent = AutoModelForCausalLM.from_pretrained(folder / "stages" / before / "hf")
        start = logits(parent)
        adapted = logits(PeftModel.from_pretrained(parent, str(stage / "adapter")))
        torch.testing.assert_close(adapted, logits(own), rtol=0, atol=1e-5)
        assert (adapted - start).abs().max() > 1e-3


def test_arms_with_and_without_an_adapter(tmp_path: Path, run_command: Any) -> None:
    (tmp_path / "x.yaml").write_text(EXPERIMENT.format(runs=tmp_path))
    done = run_command("trainer", str(tmp_path / "x.yaml"), "--no-ray", "--no-exam")
    assert done.returncode == 0, done.stderr
    assert "lora adapter: " in done.stderr and "packed rows: items do not see each other (llama, by_item" in done.stderr
    check_run(tmp_path / "adapters")


def test_a_wrong_module_is_refused_before_anything_starts(tmp_path: Path, run_command: Any) -> None:
    (tmp_path / "x.yaml").write_text(EXPERIMENT.format(runs=tmp_path))
    done = run_command("trainer", str(tmp_path / "x.yaml"), "--no-ray", "arms.lora.adapter.target_modules=[nowhere]")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert "x.yaml:12: arms.lora: adapter: " in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_chain_on_ray(ray_cluster: str, tmp_path: Path, run_command: Any) -> None:
    """Two workers, ZeRO-3, vLLM's exam, one report with both arms."""
    (tmp_path / "x.yaml").write_text(EXPERIMENT.format(runs=tmp_path))
    env = {"RAY_ADDRESS": ray_cluster, "DS_ACCELERATOR": "cpu"}
    done = run_command("trainer", str(tmp_path / "x.yaml"), "trainer.zero_stage=3", env=env, timeout_s=500)
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "adapters")
    report = json.loads((tmp_path / "adapters" / "report.json").read_text())
    assert {"base", "full", "lora"} == set(report["arms"]) and all(arm["status"] == "scored" for arm in report["arms"].values())
