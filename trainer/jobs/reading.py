"""What a driver does before it imports torch: one driver a run folder; records read, and held against what the stages ask for."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console import UserError
from data.config import DataConfig
from data.curriculum.arms import Arms, check_arms
from data.curriculum.catalogue import catalogue_of
from data.load import load_corpus
from data.records import Corpus


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One driver a run folder; UserError for the second."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is at work here; wait for it, or give this one another name=…") from None
        yield


def read_records(data: DataConfig, arms: Arms, seed: int, folder: Path) -> Corpus:
    """All of an experiment's records; rows that are not used stand in refused.jsonl. UserError for what is wrong with them, or too little for a stage."""
    corpus = load_corpus(data, seed, folder / "refused.jsonl")
    check_arms(arms, catalogue_of(corpus))
    return corpus
