"""How many tokens each item has, told without a token store: for dry runs and printed plans."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from console import UserError
from data.config import Stage
from data.corpus.golds import TokensOf
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.ground.words import BYTES_A_TOKEN, TOKENS_A_WORD, tokens_estimated
from data.rows.token_store import num_others, other_batches, record_batches
from data.tokens import Encoder, load_tokenizer
from data.wording.begins import Begins, begin
from data.wording.templates import Wording, wording_of
from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Lengths:
    """Tokens of items, by wording."""

    of: Callable[[Stage], Items | None]
    """(items,) as the stage words them, of several wordings the longest; None without data."""
    answer: TokensOf | None
    """Tokens of a question's first answer; None where they are estimated."""
    note: str
    """How they were counted, for people."""
    largest: Callable[[], int | None] = lambda: None
    """The largest token of the items that `of` has counted so far; None where none are."""


def count_lengths(
    catalogue: Catalogue, name: str | None, revision: str | None, tiny_vocab_size: int | None, bos: Begins = "auto"
) -> Lengths:
    """Counted with the model's tokenizer where it is on this machine (`name`), or with a tiny model's own; else estimated."""
    if not catalogue.records:
        declared = catalogue.declared_tokens
        return Lengths(lambda stage: declared, None, "not counted without data" if declared is None else "as declared in data.tokens_each")
    try:
        tokenizer = _tokenizer(catalogue, name, revision, tiny_vocab_size)
    except UserError:
        if name and Path(name).is_dir():
            raise
        estimate = np.fromiter(map(tokens_estimated, texts_for_tokenizer(catalogue.records)), dtype=np.int64)
        return Lengths(
            lambda stage: estimate,
            None,
            f"estimated ({TOKENS_A_WORD} a word, one for {BYTES_A_TOKEN} bytes beyond ASCII; {name} is not on this machine)",
        )
    begin(tokenizer, bos)
    counted: dict[Wording, Items] = {}
    largest: int | None = None

    def lengths_in(encoder: Encoder, batches: Iterator[tuple[str, list[Any]]]) -> Iterator[int]:
        nonlocal largest
        for _, batch in batches:
            for ids, _ in encoder.encode(batch):
                largest = max(largest or 0, max(ids, default=0))
                yield len(ids)

    def of(stage: Stage) -> Items:
        wording = wording_of(stage)
        if wording not in counted:
            encoder = Encoder(tokenizer, wording)
            counted[wording] = np.fromiter(lengths_in(encoder, record_batches(catalogue)), dtype=np.int64, count=len(catalogue))
            owners = np.repeat(np.arange(len(catalogue)), num_others(catalogue, wording.asked))
            others = lengths_in(encoder, other_batches(catalogue, wording.asked))
            np.maximum.at(counted[wording], owners, np.fromiter(others, dtype=np.int64, count=len(owners)))
        return counted[wording]

    plain = Encoder(tokenizer)
    return Lengths(of, plain.gold_length, "counted", lambda: largest)


def _tokenizer(catalogue: Catalogue, name: str | None, revision: str | None, tiny_vocab_size: int | None) -> "PreTrainedTokenizerFast":
    if tiny_vocab_size:
        return make_tokenizer(texts_for_tokenizer(catalogue.records), tiny_vocab_size)
    assert name is not None
    return load_tokenizer(name, revision, local_only=True)
