"""What the stage's start itself answers to its questions, without their documents (`teach.answers: own`): on-policy, drawn once before the stage's first step.

All answers that are not ended get a token a pass, drawn by a number that the seed, the round, the question and the place give, so that any number of ranks under any ZeRO
stage writes the same. Without a cache of keys and values, which every family keeps otherwise: a token costs a pass over the open questions, and answers are short.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.rows.lessons import Lessons
from data.rows.packing import Piece
from trainer.jobs.prepare import Job
from trainer.teaching.reading import Reader, dealt, flat_row, logits_after

Answers = dict[int, list[int]]
"""Item of the token store → tokens of its own answer, the end's with them where it came in time."""


def own_answers(reader: Reader, job: Job, lessons: Lessons, seed: int) -> Answers:
    """Of each item that is answered by the model that is taught: its tokens, the end's with them where it came in time. The same on every rank."""
    store, _ = lessons.stores()
    taught = lessons.taught()
    room = dict(zip(taught.items.tolist(), lessons.room(taught.owners).tolist(), strict=True))
    open_items = [item for item, tokens in room.items() if tokens]
    prompts = {item: store.item(item)[: store.loss_start[item]].astype(np.int64) for item in open_items}
    ends = {item: int(store.item(item)[-1]) for item in open_items}
    answers: Answers = {item: [] for item in open_items}
    while open_items:

        def read(pieces: list[Piece], items: list[int] = open_items) -> list[tuple[int, int]]:
            chosen = [items[piece.item] for piece in pieces]
            return list(
                zip(chosen, _next_tokens(reader, chosen, prompts, answers, lessons.temperature, [seed % 2**63, job.number]), strict=True)
            )

        said: list[tuple[int, int]] = []
        place = max(map(len, answers.values())) + 1
        what = f"the start answers, token {place} of at most {max(room.values())}, row"
        for rows in dealt(reader, job, [len(prompts[item]) + len(answers[item]) for item in open_items], read, what, last=False):
            said += [one for row in rows for one in row]
        for item, token in said:
            answers[item].append(token)
        open_items = [item for item in open_items if answers[item][-1] != ends[item] and len(answers[item]) < room[item]]
    return answers


def ended(lessons: Lessons, answers: Answers) -> list[bool]:
    store, _ = lessons.stores()
    return [answer[-1] == int(store.item(item)[-1]) for item, answer in answers.items()]


def _next_tokens(
    reader: Reader, items: list[int], prompts: dict[int, Any], answers: Answers, temperature: float, seed: list[int]
) -> list[int]:
    """One more token of each item's answer."""
    sequences = [np.concatenate([prompts[item], np.asarray(answers[item], dtype=np.int64)]) for item in items]
    row = flat_row(sequences)
    draws = torch.tensor([np.random.default_rng([*seed, item, len(answers[item]), 5]).random() for item in items])
    found: list[Tensor] = []
    logits_after(
        reader,
        row,
        row["cu_seqlens"][1:] - 1,
        lambda logits, first: found.append(drawn(logits, draws[first : first + len(logits)], temperature)),
    )
    return [int(token) for token in torch.cat(found)[: len(items)]]


def drawn(logits: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """(n,) tokens by logits (n, V) at a temperature, each by its draw of [0, 1); at temperature 0 the likeliest."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    up_to = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    places = draws.to(up_to)[:, None] * up_to[:, -1:]
    return torch.searchsorted(up_to, places, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
