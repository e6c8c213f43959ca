"""Layers compiled whole: one graph, no break, and the numbers of the layers as they are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from console import UserError
from tests.helpers.groups import Groups
from tests.numerics.ranks import steps
from tests.numerics.ranks.compiled_steps import engine_of, gradients, row
from tests.numerics.ranks.resume import SOLO
from trainer.config import TrainerConfig
from trainer.kernels import compiled
from trainer.kernels.compiled import CompiledLayers, Graphs, cache_beside, choose_compile
from trainer.network.families import attention_for
from trainer.step.plain import PlainEngine
from trainer.step.switches import check_switches
from trainer.store.weights import FragmentWeights

CPU = torch.device("cpu")
BOUND = 2e3 * 2**-24
"""Of a parameter's largest gradient, in fp32. Compiled code fuses products with sums (one rounding instead of two) and adds a norm's and a softmax's terms in the
vector's order: each of some hundred operations from a weight to the loss, and of as many back, rounds otherwise by at most u = 2⁻²⁴ of its result. Errors add up like a random
walk or, at worst, grow with their number times the terms that cancel: 10³ u a way, as for a token that is moved (trainer/kernels/row_probe.py)."""
FAMILIES = ("llama3", "qwen3", "mistral", "gemma2", "gemma3", "bamba")
ROWS = [row([20, 29, 47]), row([60, 9], 1), row([31, 17, 5, 22], 2)]
"""Of other lengths and other numbers of items; one_item families get each item alone."""


def kinds(family: str) -> tuple[PlainEngine, str, list[dict[str, Any]]]:
    engine = engine_of(family, "eager")
    attention = attention_for(engine.module.config, "auto", CPU, "fp32")
    engine = engine_of(family, attention)
    return engine, attention, [row([n], n) for n in (20, 29, 47)] if family == "bamba" else ROWS


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(compiled, "_cannot", {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def worst(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert found.keys() == right.keys()
    return max(float((found[name] - right[name]).abs().max() / right[name].abs().max()) for name in right)


def test_one_graph_for_all_layers_and_rows_and_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, differentiated and run operation by operation: what the compiler is given is the layer itself. Tries without gradient make no graph."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    loss, right = gradients(*kinds_of_llama())
    engine, rows, attention = kinds_of_llama()
    seen = Graphs()
    layers = CompiledLayers(engine.module, static=False)
    again, found = gradients(engine, rows, attention)
    assert not layers.why_not and len(seen.new()) == 1
    assert again == loss and all(torch.equal(found[name], right[name]) for name in right)
    layers.close()
    assert not any("forward" in layer.__dict__ for layer in layers.layers)


def kinds_of_llama() -> tuple[PlainEngine, list[dict[str, Any]], str]:
    engine, attention, rows = kinds("llama3")
    return engine, rows, attention


def test_what_cannot_be_compiled_stays_as_it_is_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    told: list[str] = []
    engine, attention, rows = kinds("llama3")
    loss, right = gradients(engine, rows, attention)
    engine, attention, rows = kinds("llama3")
    network: Any = engine.module
    for layer in network.model.layers:  # something that no graph holds: a number that decides what is computed
        own = layer.forward

        def odd(hidden: torch.Tensor, *arguments: Any, own: Any = own, **keywords: Any) -> Any:
            return own(hidden if float(hidden.sum()) < 1e9 else 2 * hidden, *arguments, **keywords)

        layer.forward = odd
    layers = CompiledLayers(network, static=False, tell=told.append)
    again, found = gradients(engine, rows, attention)
    assert again == loss and all(torch.equal(found[name], right[name]) for name in right)
    assert len(told) == 1 and told[0].startswith("layers are not compiled: ") and "\n" not in told[0], told
    CompiledLayers(network, static=False, tell=told.append)  # the next stage: known, and not tried again
    assert told[1] == told[0]
    assert layers.why_not


def test_layers_that_compute_token_after_token_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba without its kernels: a graph as long as the row, for each length anew. Seen before anything is compiled; rows that are so short are let pass."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    seen = Graphs()
    told: list[str] = []
    engine = engine_of("mamba", "eager")
    loss, right = gradients(engine, [row([100])], "eager")
    engine = engine_of("mamba", "eager")
    CompiledLayers(engine.module, static=False, tell=told.append)
    again, found = gradients(engine, [row([100])], "eager")
    assert again == loss and all(torch.equal(found[name], right[name]) for name in right)
    assert (
        seen.new() == []
        and len(told) == 1
        and re.fullmatch(r"layers are not compiled: a layer computes token after token, [0-9,]+ operations for 100 tokens", told[0])
    ), told
    engine = engine_of("bamba", "eager")  # the twin: a scan in chunks
    layers = CompiledLayers(engine.module, static=True)
    gradients(engine, [row([100])], "eager")
    assert not layers.why_not


def test_a_recompilation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    engine, attention, rows = kinds("llama3")
    CompiledLayers(engine.module, static=True)
    seen = Graphs()
    gradients(engine, rows[:1], attention)
    assert len(seen.new()) == 1
    gradients(engine, rows[:1], attention)
    assert seen.new() == []  # the twin
    gradients(engine, rows[1:2], attention)
    (line,) = seen.new()
    assert line.startswith("forward (modeling_llama.py): ") and "size mismatch" in line, line


def test_who_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert (
        choose_compile("auto", CPU) == (False, "")
        and choose_compile("off", cuda) == (False, "")
        and choose_compile("on", CPU) == (True, "")
    )
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    assert choose_compile("auto", cuda) == (True, "")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert choose_compile("auto", cuda) == (False, "layers are not compiled: a C compiler (gcc or clang) is not here")
    with pytest.raises(UserError, match="trainer.compile: on needs a C compiler"):
        choose_compile("on", cuda)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    assert choose_compile("auto", cuda) == (False, "layers are not compiled: the package triton is not here")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cuda_graphs": True}, r"trainer.cuda_graphs: true needs a CUDA GPU \(this is cpu\); leave it out"),
        ({"fp8": "tensorwise"}, r"trainer.fp8: tensorwise needs a GPU of Hopper's kind or later \(this is cpu\); leave it out"),
    ],
)
def test_switches_of_gpus_are_refused_by_name_elsewhere(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_switches(TrainerConfig(**settings), CPU, "bf16", False)
    check_switches(TrainerConfig(), CPU, "fp32", True)


@pytest.mark.parametrize(
    "settings, adapter, capability, message",
    [
        ({"fp8": "tensorwise"}, False, (8, 0), "needs a GPU of Hopper's kind"),
        ({"fp8": "tensorwise", "zero_stage": 3}, False, (9, 0), "does not go with ZeRO-3"),
        ({"fp8": "tensorwise"}, True, (9, 0), "does not go with adapters"),
        ({"fp8": "tensorwise", "compile": "off"}, False, (9, 0), "needs compiled layers"),
        ({"fp8": "tensorwise"}, False, (9, 0), "trainer.fp8: tensorwise needs the package torchao, which cannot be imported"),
        ({"cuda_graphs": True, "zero_stage": 2}, False, (9, 0), "needs trainer.precision bf16 and trainer.zero_stage 1"),
        ({"cuda_graphs": True, "zero_stage": 1, "gradient_checkpointing": True}, False, (9, 0), "does not go with trainer.gradient_checkpointing"),
        ({"cuda_graphs": True, "zero_stage": 1}, False, (9, 0), ""),
    ],
)  # fmt: skip
def test_switches_say_what_they_do_not_go_with(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], adapter: bool, capability: tuple[int, int], message: str
) -> None:
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    cuda = torch.device("cuda")
    if not message:
        return check_switches(TrainerConfig(**settings), cuda, "bf16", adapter)
    if "torchao" in message:
        monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None if name == "torchao" else object())
    with pytest.raises(UserError, match=message):
        check_switches(TrainerConfig(**settings), cuda, "bf16", adapter)


def test_the_cache_lies_beside_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    one, other = (cache_beside(tmp_path / name, CPU) for name in ("runs/one", "runs/two"))
    assert one == other and one.parent == tmp_path / "runs" / ".compiled"
    assert cache_beside(tmp_path / "elsewhere/three", CPU).parent == tmp_path / "elsewhere" / ".compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torch leaves it where something has looked for it
    assert cache_beside(tmp_path / "runs/one", CPU) == one
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert cache_beside(tmp_path / "runs/one", CPU) == tmp_path / "mine"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_equals_eager(family: str) -> None:
    """Loss and every gradient of three rows of different shapes, by torch's own compiler."""
    static = family == "bamba"  # rows of unknown length: the next test
    engine, attention, rows = kinds(family)
    loss, right = gradients(engine, rows, attention)
    engine, attention, rows = kinds(family)
    seen = Graphs()
    layers = CompiledLayers(engine.module, static=static)
    again, found = gradients(engine, rows, attention)
    assert not layers.why_not
    assert len(seen.new()) <= (2 * len(rows) if static else 2)  # one for each kind of layer, and each length
    assert again == pytest.approx(loss, rel=BOUND) and worst(found, right) < BOUND
    # The twin: 32 numbers of one layer a tenth off.
    engine, attention, rows = kinds(family)
    with torch.no_grad():
        max((p for name, p in engine.module.named_parameters() if ".layers.1." in name and p.dim() == 2), key=torch.numel).view(-1)[
            :32
        ].mul_(1.1)
    layers = CompiledLayers(engine.module, static=static)
    assert worst(gradients(engine, rows, attention)[1], right) > BOUND


@pytest.mark.slow
def test_a_hybrid_in_rows_of_unknown_length_trains_as_it_is() -> None:
    """torch 2.13's inductor cannot order the strides of a state-space scan in plain torch (no mamba-ssm) where the length is unknown: said in one line, and the bits are those of the layers as they are."""
    engine, attention, rows = kinds("bamba")
    loss, right = gradients(engine, rows, attention)
    engine, attention, rows = kinds("bamba")
    told: list[str] = []
    layers = CompiledLayers(engine.module, static=False, tell=told.append)
    again, found = gradients(engine, rows, attention)
    assert again == loss and all(torch.equal(found[name], right[name]) for name in right)
    assert told == [f"layers are not compiled: {layers.why_not}"] and layers.why_not and "\n" not in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["checkpointing", "lora", "frozen"])
def test_compiled_equals_eager_where_not_all_is_trained_or_kept(how: str) -> None:
    def prepared() -> tuple[PlainEngine, str, list[dict[str, Any]]]:
        engine, attention, rows = kinds("llama3")
        model: Any = engine.module
        if how == "checkpointing":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        elif how == "lora":
            from data.ground.adapters import Adapter
            from trainer.adapter.adapter import inject

            inject(model, Adapter(), 0, 0)
            for name, parameter in model.named_parameters():  # B starts at 0, and then A's gradient is 0 too
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
        else:
            for name, parameter in model.named_parameters():  # other ones in each layer
                parameter.requires_grad_(
                    not name.endswith(("0.self_attn.k_proj.weight", "1.mlp.up_proj.weight", "1.input_layernorm.weight"))
                )
        return PlainEngine(model, (0.9, 0.95), 0.0, 0.0), attention, rows

    engine, attention, rows = prepared()
    loss, right = gradients(engine, rows, attention)
    engine, attention, rows = prepared()
    seen = Graphs()
    layers = CompiledLayers(engine.module, static=False)
    again, found = gradients(engine, rows, attention)
    assert not layers.why_not and len(seen.new()) == 1
    assert again == pytest.approx(loss, rel=BOUND) and worst(found, right) < BOUND


@pytest.mark.slow
def test_every_zero_stage_compiled_under_two_ranks_and_warm_after(groups: Groups, tmp_path: Path) -> None:
    """Ranks share one folder of compiled code while it is empty; a second start finds all of it there."""
    groups.call("tests.numerics.ranks.compiled_steps", tmp_path, 2, "cold-")
    groups.call("tests.numerics.ranks.compiled_steps", tmp_path, 2, "warm-")
    told = {start: [json.loads((tmp_path / f"told-{start}{rank}.json").read_text()) for rank in range(2)] for start in ("cold-", "warm-")}
    assert all(warm["hits"] and not warm["misses"] for warm in told["warm-"])
    plain = PlainEngine(steps.made_model(), steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip)
    losses, norms = steps.run_steps(plain, 0, 1)
    shapes = {name: list(p.shape) for name, p in plain.module.named_parameters()}
    for case in (f"zero{zero_stage}-{kind}" for zero_stage in range(4) for kind in ("eager", "compiled")):
        ranks = [cold[case] for cold in told["cold-"]]
        # Four steps of Adam at 3e-3: losses follow gradients whose sums were rounded otherwise, as between ZeRO stages (test_zero.py).
        shares = torch.tensor([found["losses"] for found in ranks])
        torch.testing.assert_close(shares.sum(dim=0), torch.stack(losses), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(ranks[0]["norms"]), torch.tensor(norms), rtol=1e-5, atol=1e-5)
        stored = FragmentWeights(tmp_path / f"cold-{case}", shapes, 2)
        for name, weight in plain.module.named_parameters():
            torch.testing.assert_close(stored.read(name), weight.detach(), rtol=0, atol=1e-5)
        assert not any(found["why_not"] for found in ranks)
        assert all(found["graphs"] <= 1 for found in ranks), "no graph for a stage that another has made"
        assert [warm[case]["losses"] for warm in told["warm-"]] == [found["losses"] for found in ranks]
    assert abs(float(losses[0] - losses[1])) > 1e-3  # the twin: a step too many would be seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved, resumed", [(("static", 1), (3, "exact", 3)), (("exact", 3), (3, "static", 2)), (("static", 2), (1, "exact", SOLO))]
)
def test_other_ranks_go_on_with_rows_of_other_shapes(
    groups: Groups, tmp_path: Path, saved: tuple[str, int], resumed: tuple[int, str, int]
) -> None:
    """Two ranks save after two of four steps, static rows through compiled layers or exact ones through layers as they are; others go on in the other way. Against plain torch."""
    plain = PlainEngine(steps.made_model(), steps.CONFIG.betas, steps.CONFIG.weight_decay, steps.CONFIG.clip)
    right = torch.stack(steps.run_steps(plain, 0, 1)[0])
    for folder in ("first", "then"):
        (tmp_path / folder).mkdir()
    groups.call("tests.numerics.changed_steps", tmp_path / "first", 2, *map(str, saved))
    world_size, *how = resumed
    groups.call("tests.numerics.changed_steps", tmp_path / "then", world_size, *map(str, how), "2")
    losses = [float.fromhex(one) for folder in ("first", "then") for one in (tmp_path / folder / "losses").read_text().split()]
    torch.testing.assert_close(torch.tensor(losses), right, rtol=1e-5, atol=1e-5)  # as between ZeRO stages (test_zero.py)
    stored = FragmentWeights(tmp_path / "then/end", {name: list(p.shape) for name, p in plain.module.named_parameters()}, world_size)
    for name, weight in plain.module.named_parameters():
        torch.testing.assert_close(stored.read(name), weight.detach(), rtol=0, atol=1e-5)
    assert float((right[1:] - right[:-1]).abs().min()) > 1e-4  # the twin: a step too many or too few would be seen


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_to_the_same_bits_with_layers_compiled(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults.conftest import events_of, oracle, write_experiment

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")  # the fork server has none either
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = (write_experiment(tmp_path / name) for name in ("whole", "killed"))
    assert groups(whole, "trainer.compile=on", limit_s=250) == [0, 0]
    assert -9 in groups(killed, "trainer.compile=on", limit_s=250, STUDYHALL_FAIL="step.begin=kill@25")
    assert groups(killed, "trainer.compile=on", limit_s=250) == [0, 0]
    run = tmp_path / "killed/runs/small"
    assert oracle(run) == oracle(tmp_path / "whole/runs/small")
    assert "layers are compiled: 1 LlamaDecoderLayer" in events_of(run) and list((tmp_path / "killed/runs/.compiled").glob("*/*"))
    for stage in (run / "stages").iterdir():
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["first_step_s"] == pytest.approx(lines[0]["step_s"])
        assert json.loads((stage / "manifest.json").read_text())["totals"]["first_step_s"] == lines[-1]["first_step_s"]
