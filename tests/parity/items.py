"""The items of a cell's one step, and where they lie in rows."""

from functools import cache

import numpy as np

from data.config import Mix, Stage
from data.curriculum.plan import Plan
from data.rows.token_store import TokenStore
from tests.parity.cells import TRAINED
from tests.parity.models import VOCAB

LENGTHS = {"short": [23, 9, 30, 17, 12, 28, 5, 20], "long": [98, 1300, 800, 150, 48, 1200, 500]}
"""Tokens of each item. The long ones fill two rows of 2,048 to the last token, each with an item of 1,200 or more between short ones."""
CAPACITY = {"short": 72, "long": 2048}
RATE = 1e-3
SEED, NUMBER = 3, 1


@cache
def store(rows: str) -> TokenStore:
    """One token in three is the same: its row of the embedding's gradient is a sum of more than a thousand."""
    rng = np.random.default_rng(3)
    lengths = np.array(LENGTHS[rows])
    tokens = np.where(rng.random(lengths.sum()) < 1 / 3, 7, rng.integers(3, VOCAB, lengths.sum()))
    return TokenStore(
        tokens=tokens.astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        loss_start=np.where(np.arange(len(lengths)) % 3 == 2, lengths // 2, 1).astype(np.int32),  # every third is a question
        sha256="",
    )


@cache
def plan(rows: str) -> Plan:
    count = len(LENGTHS[rows])
    return Plan(np.arange(count), np.array([0, count]), "")


def stage(trained: str, rows: str) -> Stage:
    return Stage.model_validate(
        {
            "mix": Mix(train_documents=1),
            "epochs": 1,
            "batch_items": len(LENGTHS[rows]),
            "rate": RATE,
            "schedule": "constant",
            **TRAINED[trained],
        }
    )
