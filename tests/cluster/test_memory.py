"""GPU, host and disk memory: ZeRO's formula, and activations against what a real model keeps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cost.chips import CHIPS, GIB, make_hardware
from cluster.cost.memory import LOGITS_AT_ONCE, SetUp, activation_bytes, disk, gpu_memory, host_memory, logit_bytes, power_of_two
from cluster.cost.model_shape import ModelShape, read_shape
from cluster.plan import question_of
from cluster.plan_text import in_lines
from cluster.setups import advise
from experiment import load_experiment
from tests.conftest import ROOT
from tests.helpers.networks import sizes

FILE_7B = ROOT / "experiments" / "wiki2023_llama2_7b.yaml"
LLAMA_70B = ModelShape(8192, 80, 28672, 64, 8, 128, 32000)
LLAMA_7B = ModelShape(4096, 32, 11008, 32, 32, 128, 32000)


@pytest.mark.parametrize("stage, kept", [(1, lambda n: 6 + 12 / n), (2, lambda n: 2 + 16 / n), (3, lambda n: 18 / n)])
@pytest.mark.parametrize("n", [1, 8, 64])
def test_zero_s_formula(stage: int, kept, n: int) -> None:  # type: ignore[no-untyped-def]
    """4 + 12/n, 2 + 14/n, 16/n bytes a parameter (arXiv 1910.02054), with fp32 instead of bf16 gradients 2 more."""
    assert gpu_memory(LLAMA_7B, SetUp(stage, 4096), n).kept == pytest.approx(kept(n) * LLAMA_7B.parameters)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_elastic_weights_take(stage: int) -> None:
    """The start and how much each weight matters, in fp32, shared as moments are (anchor.ewc)."""
    without, held = (gpu_memory(LLAMA_7B, SetUp(stage, 4096, held=of), 8).kept for of in (False, True))
    assert held - without == pytest.approx(8 * LLAMA_7B.parameters / 8)
    hardware = make_hardware(8, CHIPS["A100-80G"])
    without, held = (host_memory(LLAMA_7B, SetUp(stage, 4096, offload=True, held=of), hardware).states for of in (False, True))
    assert held - without == pytest.approx(8 * LLAMA_7B.parameters)


def test_offloaded_states_are_on_the_host() -> None:
    hardware = make_hardware(8, CHIPS["A100-80G"])
    gpu = gpu_memory(LLAMA_7B, SetUp(3, 4096, offload=True), 8)
    assert gpu.kept == pytest.approx(2 * LLAMA_7B.parameters / 8) and gpu.step == 0
    host = host_memory(LLAMA_7B, SetUp(3, 4096, offload=True), hardware)
    assert host.states >= 16 * LLAMA_7B.parameters
    assert host_memory(LLAMA_7B, SetUp(3, 4096), hardware).states == 0


@pytest.mark.parametrize("recompute, precision", [(False, "bf16"), (True, "bf16"), (False, "fp32")])
def test_activations_of_a_real_model(recompute: bool, precision: str) -> None:
    """The formula counts what autograd keeps for a transformers Llama with our packed attention, to 10 %: each tensor once, weights not."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from trainer.kernels.attention import attention_inputs

    config = LlamaConfig(vocab_size=64, head_dim=64, **sizes(256, 704, layers=6, heads=4, key_heads=2))
    dtype, wide = (torch.bfloat16, 2) if precision == "bf16" else (torch.float32, 4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    shape = ModelShape(256, 6, 704, 4, 2, 64, 64)
    tokens = 512
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() >= tokens:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    boundaries = np.array([0, tokens], dtype=np.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.model(
            input_ids=torch.randint(0, 64, (1, tokens)),
            position_ids=torch.arange(tokens)[None],
            use_cache=False,
            **attention_inputs("sdpa", boundaries, torch.device("cpu")),
        ).last_hidden_state
    assert hidden.requires_grad
    counted = sum(kept.values())
    formula = activation_bytes(shape, tokens, recompute, wide)
    if recompute:  # the one block that is whole at a time exists in the backward pass only
        formula -= activation_bytes(ModelShape(256, 1, 704, 4, 2, 64, 64), tokens, False, wide) - tokens * (4 + 2 * wide) * 256
    assert counted == pytest.approx(formula, rel=0.1)


def test_the_host_s_peak() -> None:
    """Kept buffers of 12 and 4 bytes a weight of a share, page-locked memory in powers of two, and the next stage's share and one tensor beside them."""
    hardware = make_hardware(64, CHIPS["H100"])
    host = host_memory(LLAMA_70B, SetUp(3, 8192, True), hardware)
    share, largest = LLAMA_70B.parameters / 64, LLAMA_70B.largest_parameter
    assert 12 * share < power_of_two(12 * share) == 16 * GIB
    assert host.kept == 8 * (power_of_two(12 * share) + power_of_two(4 * share))
    assert (host.loading, host.resuming) == (8 * (4 * share + 4 * largest), 8 * (12 * share + 4 * largest))
    assert host.saving == 8 * 2 * 2 * largest and host.peak == host.processes + host.kept + host.loading


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_read_by_shares_is_held_by_shares(stage: int) -> None:
    """Whatever the ZeRO stage eight ranks hold the model once between them, not eight times, while they load it."""
    host = host_memory(LLAMA_7B, SetUp(stage, 8192), make_hardware(8, CHIPS["H100"]))
    assert host.loading == pytest.approx(4 * LLAMA_7B.parameters + 8 * 4 * LLAMA_7B.largest_parameter)


def test_without_page_locked_memory_a_stage_gives_its_buffers_back() -> None:
    hardware = make_hardware(8, CHIPS["H100"])
    host = host_memory(LLAMA_7B, SetUp(2, 8192, offload=True), hardware)
    assert host.kept == 0 and host.saving == 12 * LLAMA_7B.parameters
    adapted = host_memory(LLAMA_7B, SetUp(2, 8192, adapter=16), hardware)
    assert adapted.saving == 8 * LLAMA_7B.parameters and adapted.kept < GIB < adapted.resuming


def test_the_disk() -> None:
    """Two checkpoints and the one being written, 12 bytes each; a committed stage has fp32 weights and a bf16 copy."""
    found = disk(LLAMA_70B, num_stages=3, keep=2)
    size = LLAMA_70B.parameters
    assert (found.model, found.stages, found.checkpoints) == (2 * size, 18 * size, 36 * size)


@pytest.mark.parametrize("size, rounded", [(1, 1), (2, 2), (3, 4), (2**30, 2**30), (2**30 + 1, 2**31)])
def test_powers_of_two(size: int, rounded: int) -> None:
    assert power_of_two(size) == rounded


def test_logits_are_those_that_are_made_at_once(tmp_path: Path) -> None:
    """A big vocabulary was refused for rows whose logits never lie in memory together. The twin: Gemma 2 caps them all, so it needs them all."""
    from trainer.kernels import linear_loss

    assert LOGITS_AT_ONCE == linear_loss.LOGITS_AT_ONCE
    small, large = (logit_bytes(ModelShape(1024, 2, 4096, 8, 8, 128, vocabulary), 16_384) for vocabulary in (8_192, 152_064))
    assert small == 16_384 * 8_192 * 10 and large == 2**28 * 10 + 152_064 * 1024 * 6
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
    }
    for kind, whole in (("llama", False), ("gemma2", True), ("granite", True)):
        more = {"logits_scaling": 8.0} if kind == "granite" else {}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **more}))
        assert read_shape(tmp_path / "config.json").whole_logits is whole
    assert logit_bytes(replace(ModelShape(1024, 2, 4096, 8, 8, 128, 152_064), whole_logits=True), 16_384) == 16_384 * 152_064 * 10


@pytest.mark.parametrize(
    ("chip", "zero", "said"),
    [
        ("A100-40G", 2, "25.1 GiB of fp32 weights on each GPU"),
        ("A10", 2, "25.1 GiB of fp32 weights on each GPU, which holds 21.0: it will not fit"),
        ("A10", 3, "3.1 GiB of fp32 weights on each GPU"),
    ],
)
def test_what_a_teacher_holds_is_said(chip: str, zero: int, said: str) -> None:
    """A LoRA stage that fits may have a teacher that does not. What its pass takes is a phase."""
    overrides = [
        "arms={taught: {preset: pit, teach: {share: 0.5}}}",
        "exam.compare_to=taught",
        f"trainer.zero_stage={zero}",
        "trainer.adapter={r: 8}",
    ]
    asked, hardware = load_experiment(FILE_7B, overrides), make_hardware(8, CHIPS[chip], 8)
    question = question_of(asked, hardware)
    lines = in_lines("x", question, hardware, advise(question, hardware), None)
    text = " ".join(" ".join(lines).split())
    assert f" before 2 stages a teacher reads, counted as of the same size: {said} " in text and " load teaching training " in text
    plain = question_of(load_experiment(FILE_7B), hardware)
    without = " ".join(in_lines("x", plain, hardware, advise(plain, hardware), None))
    assert "teacher" not in without and "teaching" not in without
    halved = question_of(load_experiment(FILE_7B, [*overrides, "trainer.teacher_precision=bf16", "trainer.zero_stage=3"]), hardware)
    words = " ".join(in_lines("x", halved, hardware, advise(halved, hardware), None)).split()
    assert "1.6 GiB of bf16 weights on each GPU" in " ".join(words)
