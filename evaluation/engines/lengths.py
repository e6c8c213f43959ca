"""Ropes with other factors for long sequences (longrope: Phi-3-128k, Phi-4-mini): which tokens are asked of which network.

transformers chooses the factors by the length of each forward pass, vLLM by the longest sequence that an engine may be given. The rule
here is transformers': a sequence of at most `short` tokens has the short factors, and the next token is what a forward pass over all
tokens before it gives. So an answer that grows past `short` tokens is begun with the short factors and goes on with the long ones, from
keys computed anew: what Phi-3 does in transformers, and other families' generate would not (it keeps the keys of the short factors).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

T = TypeVar("T")
Ask = Callable[..., Any]
"""ask(long, method, *arguments) → what the engine of that side says."""


def answer_by_length(ask: Ask, short: int, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Any]:
    """See Examiner.answer. The engine for short sequences must end an answer when it and its prompt have `short` + 1 tokens."""
    answers: list[Any] = [None] * len(prompts)
    begun = [n for n, prompt in enumerate(prompts) if len(prompt) <= short]
    if begun:
        for n, answer in zip(begun, ask(False, "answer", [prompts[n] for n in begun], max_tokens, eos_id), strict=True):
            answers[n] = answer
    left = {n: max_tokens - len(answer["token_ids"]) if answer else max_tokens for n, answer in enumerate(answers)}
    open_ones = [n for n, answer in enumerate(answers) if not answer or (answer["finish_reason"] == "length" and left[n])]
    for budget, group in groupby(sorted(open_ones, key=lambda n: -left[n]), key=lambda n: left[n]):
        members = list(group)
        whole = [prompts[n] + (answers[n]["token_ids"] if answers[n] else []) for n in members]
        for n, more in zip(members, ask(True, "answer", whole, budget, eos_id), strict=True):
            answers[n] = _joined(ask, answers[n], more) if answers[n] else more
    return answers


def _joined(ask: Ask, begun: Any, more: Any) -> Any:
    """One answer of two parts; decoded as a whole, because a letter may be cut between them."""
    ids = [*begun["token_ids"], *more["token_ids"]]
    return {**more, "token_ids": ids, "text": ask(True, "text_of", ids), "logprob": begun["logprob"] + more["logprob"]}


def likelihoods_by_length(ask: Ask, short: int, first: bool, sequences: list[list[int]], starts: Sequence[int]) -> list[float]:
    """See Examiner.log_likelihoods; `first`: the side to begin with (True: long), because a change costs a new engine."""
    found = [0.0] * len(sequences)
    for long in (first, not first):
        members = [n for n, ids in enumerate(sequences) if (len(ids) > short) == long]
        if members:
            values = ask(long, "log_likelihoods", [sequences[n] for n in members], [starts[n] for n in members])
            for n, value in zip(members, values, strict=True):
                found[n] = value
    return found


def neighbours(items: Iterable[T], is_long: Callable[[T], bool]) -> list[T]:
    """In their own order, but the short ones first: each change of sides costs a new engine."""
    return sorted(items, key=is_long)
