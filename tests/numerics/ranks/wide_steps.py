"""Gradients in bf16 of a row in which one token stands 1,900 times, as torch's kernels add them and as ours do: run by test_wide_sums.py."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.numerics.ranks import steps

TOKENS, FREQUENT = 2048, 1900
CASES = [("llama", 1), ("tied", 2), ("llama", 3), ("neox", 1), ("neox", 3), ("gpt2", 2)]


def made_model(kind: str) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

    torch.manual_seed(0)
    if kind == "gpt2":  # learned positions, and LayerNorm
        return AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=steps.VOCAB, n_embd=32, n_layer=1, n_head=4, n_positions=TOKENS, bos_token_id=1, eos_token_id=2)
        )
    if kind == "neox":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        return AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=steps.VOCAB, **sizes))
    return steps.made_model("sdpa", tied=kind == "tied")


def worst(kind: str, zero_stage: int) -> dict[str, float]:
    """Parameter → how far its gradient is from the sum in fp64 of what autograd handed to its modules, as a share of its norm; of tables and LayerNorms."""
    from deepspeed.utils import safe_get_full_grad

    from trainer.step.engine import DeepSpeedEngine

    model = made_model(kind)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = DeepSpeedEngine(model, steps.CONFIG.model_copy(update={"zero_stage": zero_stage}), "bf16", torch.device("cpu"))
    exact: dict[str, Tensor] = {}
    tied = model.config.tie_word_embeddings and model.get_output_embeddings()
    table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding | torch.nn.LayerNorm) or module is tied:
            module.register_forward_hook(_watch(exact, table if module is tied else name))
    ids = torch.full((TOKENS,), 5)
    torch.manual_seed(1)
    ids[FREQUENT:] = torch.randint(0, steps.VOCAB, (TOKENS - FREQUENT,))
    logits = engine.forward(input_ids=ids[None], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits.float(), torch.full((TOKENS,), 7))
    engine.backward(loss)
    found = {"loss": float(loss)}
    for name, parameter in model.named_parameters():
        gradient = safe_get_full_grad(parameter)
        if name in exact:
            found[name] = float((gradient.double() - exact[name]).norm() / exact[name].norm())
    engine.close()
    return found


def _watch(exact: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        given = inputs[0].detach()
        if output.requires_grad:
            output.register_hook(lambda gradient: _add(exact, name, module, given, gradient))

    return hook


def _add(exact: dict[str, Tensor], name: str, module: Any, given: Tensor, gradient: Tensor) -> None:
    slope, weight = gradient.double().flatten(0, -2), f"{name}.weight"
    if isinstance(module, torch.nn.Embedding):
        table = torch.zeros(module.num_embeddings, module.embedding_dim, dtype=torch.float64).index_add_(0, given.flatten(), slope)
        exact[weight] = exact.get(weight, 0) + table
        return
    rows = given.double().flatten(0, -2)
    if isinstance(module, torch.nn.Linear):  # the head, where it is the table
        exact[weight] = exact.get(weight, 0) + slope.T @ rows
        return
    rows = (rows - rows.mean(-1, keepdim=True)) * (rows.var(-1, keepdim=True, correction=0) + module.eps).rsqrt()
    exact[weight], exact[f"{name}.bias"] = (slope * rows).sum(0), slope.sum(0)


def operators() -> dict[str, float]:
    """The same of single operators whose backward passes add rows of a bf16 tensor."""
    ids, slope = torch.arange(TOKENS) % 3, torch.rand(TOKENS, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    uses = {
        "weight[ids]": (torch.ones(3, 8), lambda weight: weight[ids]),
        "weight[:, ids]": (torch.ones(8, 3), lambda weight: weight[:, ids].T),
        "take": (torch.ones(3, 8), lambda weight: weight.take(ids)[:, None].expand(-1, 8)),
        "index_select": (torch.ones(1, 3, 8), lambda weight: weight.index_select(1, ids)[0]),
        "index_select of a vector": (torch.ones(3), lambda weight: weight.index_select(0, ids)[:, None].expand(-1, 8)),
    }
    found = {}
    for name, (weight, use) in uses.items():
        got, exact = weight.bfloat16().requires_grad_(), weight.double().requires_grad_()
        use(got).backward(slope)
        use(exact).backward(slope.double())
        found[name] = float((got.grad.double() - exact.grad).norm() / exact.grad.norm())  # type: ignore[union-attr]
    return found


def main(out: Path, world_size: int, rank: int) -> None:
    from trainer.step import engine

    ours, engine.widen_sums = engine.widen_sums, lambda: None  # type: ignore[assignment]
    found: dict[str, Any] = {f"{kind}-torch": worst(kind, 2) for kind in ("llama", "neox", "gpt2")} | {"operators-torch": operators()}
    engine.widen_sums = ours  # type: ignore[assignment]
    found |= {f"{kind}-{zero_stage}": worst(kind, zero_stage) for kind, zero_stage in CASES}
    found["operators"] = operators()
    (out / "found.json").write_text(json.dumps(found))
