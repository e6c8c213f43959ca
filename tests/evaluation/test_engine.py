"""The engine: vLLM's answers and log-likelihoods equal transformers', for every checkpoint that is swapped in; failures are
replaced once. Real vLLM on CPU in a Ray actor, with tiny random Llamas.
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation.engine import Engine
from evaluation.engines.network import network
from evaluation.engines.options import Answer, EngineOptions
from evaluation.examiner import Examiner
from tests.faults.promises import F17
from tests.helpers.networks import sizes

EOS = 2
OPTIONS = EngineOptions(timeout_s=240)
LENGTH = 160


def sequences() -> list[list[int]]:
    """Of 1 to 120 tokens, the first <s>."""
    rng = random.Random(0)
    return [[1] + [rng.randrange(3, 300) for _ in range(n)] for n in (0, 1, 7, 30, 119)]


PROMPTS = [s[:12] for s in sequences()[1:]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """untied-0, untied-1, tied-0, tied-1, experts-0, experts-1: two checkpoints of each network. Wide weights, so that no two tokens nearly tie."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["a tiny model answers questions about small documents that nobody has read"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    for kind, of, own in (("untied", LlamaConfig, {}), ("tied", LlamaConfig, {}), ("experts", MixtralConfig, experts)):
        config: Any = of(
            **sizes(64, 128, layers=2, heads=2, key_heads=1),
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=EOS,
            pad_token_id=0,
            tie_word_embeddings=kind == "tied",
            initializer_range=0.3,
            **own,
        )
        for seed in (0, 1):
            torch.manual_seed(seed)
            path = made[f"{kind}-{seed}"] = folder / f"{kind}-{seed}"
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
    return made


def by_transformers(path: Path) -> tuple[list[list[int]], list[float]]:
    """Greedy tokens of PROMPTS and log-likelihoods of sequences(), one at a time in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    greedy, likelihoods = [], []
    with torch.no_grad():
        for prompt in PROMPTS:
            said = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=EOS, pad_token_id=0)
            greedy.append(said[0, len(prompt) :].tolist())
        for ids in sequences():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(logs[i, token].item() for i, token in enumerate(ids[1:])))
    return greedy, likelihoods


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer["token_ids"] for answer in answers]


def check(engine: Engine, path: Path) -> None:
    """What the engine says is what transformers says of the checkpoint at `path`."""
    greedy, likelihoods = by_transformers(path)
    answers = engine.answer(PROMPTS, 24, EOS)
    assert tokens(answers) == greedy
    # what the engine says of its own answers is what it says of them as given sequences, from the prompt's end on
    own = engine.log_likelihoods([p + ids for p, ids in zip(PROMPTS, greedy, strict=True)], [len(p) for p in PROMPTS])
    assert [a["logprob"] for a in answers] == pytest.approx(own, abs=1e-4, rel=1e-6)
    assert [a["finish_reason"] for a in answers] == ["stop" if ids[-1] == EOS else "length" for ids in greedy]
    # fp32 summed in another order, over at most 119 tokens of about 10 nats each
    assert engine.log_likelihoods(sequences()) == pytest.approx(likelihoods, abs=1e-4, rel=1e-6)


@pytest.mark.timeout(600)
def test_untied_weights_are_swapped_in_place(ray_cluster: Any, checkpoints: dict[str, Path]) -> None:
    with Engine(OPTIONS) as engine:
        first = engine.open(str(checkpoints["untied-0"]), weights="untied-0", max_model_len=LENGTH)
        check(engine, checkpoints["untied-0"])
        with pytest.raises(AssertionError):  # the twin that must fail: the weights were not swapped
            check(engine, checkpoints["untied-1"])
        actor, start = engine._actor, time.perf_counter()
        second = engine.open(str(checkpoints["untied-1"]), weights="untied-1", max_model_len=LENGTH)
        assert engine._actor is actor
        assert time.perf_counter() - start < 5  # a new engine takes 15 s and more
        assert first != second
        check(engine, checkpoints["untied-1"])


class KeepsItsCache(Examiner):
    """Forgets to drop what was cached under the old weights."""

    def _forget(self) -> None:
        pass


class KeepsItsCacheUnsalted(KeepsItsCache):
    def _salt(self) -> str:
        return "always the same"


LONG = [[1] + [(7 * i + j) % 300 + 3 for j in range(140)] for i in range(2)]  # more than one block of the cache


@pytest.mark.slow
@pytest.mark.timeout(600)
@F17
def test_a_cache_of_old_weights_is_never_used(ray_cluster: Any, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault F17. Prompts are salted and swaps compared; the twin, without both, answers from the keys and values of the weights before."""

    def logprobs(examiner: type, path: str, before: str | None = None) -> list[float]:
        with Engine(OPTIONS, examiner) as engine:
            if before:
                engine.open(before, before, 200)
                engine.answer(LONG, 4, EOS)
            engine.open(path, path, 200)
            return [answer["logprob"] for answer in engine.answer(LONG, 4, EOS)]

    old, new = str(checkpoints["untied-0"]), str(checkpoints["untied-1"])
    fresh = logprobs(Examiner, new)
    assert logprobs(KeepsItsCache, new, old) == pytest.approx(fresh, abs=1e-4)
    assert logprobs(KeepsItsCacheUnsalted, new, old) == pytest.approx(fresh, abs=1e-4)
    monkeypatch.setattr(Engine, "_prove_swap", lambda self, before: None)
    assert logprobs(KeepsItsCacheUnsalted, new, old) != pytest.approx(fresh, abs=1e-2)


class Careless(Examiner):
    def reload_whatever_the_network(self, path: str) -> bool:
        known, self._new_only = self._new_only, ""
        loaded = self.load(path)
        self._new_only = known
        return loaded


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["tied", "experts"])
def test_what_vllm_cannot_reload(ray_cluster: Any, checkpoints: dict[str, Path], kind: str) -> None:
    """Reloading it in place is silently wrong. Should that ever fail to be so: vLLM has mended it, and Examiner.load need not refuse."""
    import ray

    with Engine(OPTIONS, Careless) as engine:
        engine.open(str(checkpoints[f"{kind}-0"]), weights=f"{kind}-0", max_model_len=LENGTH)
        check(engine, checkpoints[f"{kind}-0"])
        actor = engine._actor
        assert ray.get(actor.reload_whatever_the_network.remote(str(checkpoints[f"{kind}-1"])), timeout=60)
        with pytest.raises(AssertionError):
            check(engine, checkpoints[f"{kind}-1"])
        engine.open(str(checkpoints[f"{kind}-1"]), weights=f"{kind}-1", max_model_len=LENGTH)
        assert engine._actor is not actor
        check(engine, checkpoints[f"{kind}-1"])


@pytest.mark.timeout(600)
def test_experts_on_cpus_get_a_new_engine(ray_cluster: Any, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(OPTIONS) as engine:
        for name in ("experts-0", "experts-1"):
            engine.open(str(checkpoints[name]), weights=name, max_model_len=LENGTH)
            check(engine, checkpoints[name])
    said = capsys.readouterr().err
    assert "examined by vLLM\n" in said and "nats a token" not in said  # known beforehand: nothing was tried


class Scrambles(Examiner):
    """Loads what it is told to, and then loses a part of it, as vLLM's reload of experts does; every number still changes."""

    def load(self, path: str) -> bool:
        def scramble(model: Any) -> None:
            model.model.layers[1].input_layernorm.weight.data.mul_(-1)

        loaded = super().load(path)
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        self._llm.apply_model(scramble)
        return loaded


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("compared", ["transformers", "a new engine"])
def test_a_broken_swap_is_found(
    ray_cluster: Any, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, compared: str
) -> None:
    if compared != "transformers":  # as on GPUs, in bf16, or where a second copy does not fit
        monkeypatch.setattr(Engine, "_by_transformers", lambda self, said: None)
    with Engine(OPTIONS, Scrambles) as engine:
        engine.open(str(checkpoints["untied-0"]), weights="untied-0", max_model_len=LENGTH)
        actor = engine._actor
        engine.open(str(checkpoints["untied-1"]), weights="untied-1", max_model_len=LENGTH)
        assert engine._actor is not actor
        check(engine, checkpoints["untied-1"])
    assert f"nats a token from {compared}: every model of this network gets a new engine" in capsys.readouterr().err


def test_network_ignores_weights_and_incidentals(tmp_path: Path) -> None:
    texts = {
        "a": '{"hidden_size": 8, "transformers_version": "5.1"}',
        "b": '{"transformers_version": "5.2", "dtype": "bfloat16", "hidden_size": 8}',
        "c": '{"hidden_size": 16}',
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "model.safetensors").write_text(name)
    assert network(str(tmp_path / "a")) == network(str(tmp_path / "b")) != network(str(tmp_path / "c"))
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert network(str(tmp_path / "a")) != network(str(tmp_path / "b"))
    assert network("someone/a-model") is None
