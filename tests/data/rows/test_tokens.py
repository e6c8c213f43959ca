"""Tokens and loss spans: exact, by character offsets; text is text."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.config import Bios
from data.corpus.bios import make_bios
from data.curriculum.catalogue import catalogue_of
from data.records import Document, Question
from data.rows.token_store import open_store, write_store
from data.tokens import Encoder, _first_beyond
from data.wording.tiny_tokenizer import make_tokenizer

TEXTS = ["Question: Who wrote it? Answer: Ann Lee", "The film was directed by Ann Lee in 2023. Ünïcödé 日本"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(make_tokenizer(TEXTS, 400))


def decode(encoder: Encoder, ids: list[int]) -> str:
    return str(encoder._backend.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("answer", ["Ann Lee", "x", "日本", "Answer: y", " padded", "in 2023."])
def test_loss_covers_exactly_the_answer_and_the_end(encoder: Encoder, answer: str) -> None:
    question = Question("q", "Who wrote it?", (answer,))
    [(ids, start)] = encoder.encode([question])
    assert decode(encoder, ids[start:]) == f" {answer}</s>"
    assert ids[-1] == encoder.eos_id


@pytest.mark.parametrize("pre", [{"add_prefix_space": True}, {"add_prefix_space": False, "trim_offsets": False}, None])
def test_first_token_beyond_a_place_as_a_list_of_offsets_says(pre: dict[str, bool] | None) -> None:
    """Asked by character, it must be the token that the offsets give, spaces, accents and empty tokens included."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace() if pre is None else pre_tokenizers.ByteLevel(**pre)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    rng = np.random.default_rng(0)
    parts = ["a", "b", " ", "  ", "é", "日", "x.", "\n", "Question", "?", " Answer:", "\u200b", "\t"]
    for _ in range(2000):
        before, after = ("".join(rng.choice(parts, rng.integers(1, 8))) for _ in range(2))
        encoding = backend.encode(before + after, add_special_tokens=False)
        wanted = next((n for n, (_, end) in enumerate(encoding.offsets) if end > len(before)), len(encoding.ids))
        assert _first_beyond(encoding, len(before)) == wanted, (before, after)


def test_training_prefix_is_the_exam_prompt(encoder: Encoder) -> None:
    question = Question("q", "Who wrote it?", ("Ann",))
    [(ids, start)] = encoder.encode([question])
    assert ids[:start] == encoder.prompt(question.question)


def test_document_has_no_end_token(encoder: Encoder) -> None:
    document = Document("d", TEXTS[1])
    [(ids, start)] = encoder.encode([document])
    assert start == 1 and ids[0] == 1 and encoder.eos_id not in ids
    assert ids == encoder.document(document)
    assert decode(encoder, ids[1:]) == " " + TEXTS[1]  # our tiny tokenizer starts every text with a space


def test_special_tokens_in_text_stay_text(encoder: Encoder) -> None:
    [(ids, _)] = encoder.encode([Document("d", "a</s>b<s>")])
    assert encoder.eos_id not in ids[1:] and 1 not in ids[1:]
    assert decode(encoder, ids[1:]) == " a</s>b<s>"


def test_store_gives_back_what_was_encoded(tmp_path: Path) -> None:
    catalogue = catalogue_of(make_bios(Bios(replay_people=3, train_people=4, test_people=2), 0))
    texts = [str(r) for rows in catalogue.records.values() for r in rows]
    encoder = Encoder(make_tokenizer(texts, 500))
    written = write_store(tmp_path, catalogue, encoder)
    store = open_store(tmp_path)
    encoded = [pair for rows in catalogue.records.values() if rows for pair in encoder.encode(rows)]
    for n, (ids, start) in enumerate(encoded):
        assert np.array_equal(store.item(n), ids) and store.loss_start[n] == start
    assert store.sha256 == written.sha256


def test_store_is_made_again_when_a_record_changes(tmp_path: Path) -> None:
    corpus = make_bios(Bios(replay_people=0, train_people=2, test_people=1), 0)
    encoder = Encoder(make_tokenizer(["a b c"], 300))
    first = write_store(tmp_path, catalogue_of(corpus), encoder).sha256
    assert write_store(tmp_path, catalogue_of(corpus), encoder).sha256 == first
    part = corpus.parts["train"]
    part.documents[0] = dataclasses.replace(part.documents[0], text="Another text.")
    assert write_store(tmp_path, catalogue_of(corpus), encoder).sha256 != first


@pytest.mark.parametrize("answer", ["Ann Lee", "日本", " padded", "a</s>b"])
def test_gold_tokens_are_those_that_training_learns(encoder: Encoder, answer: str) -> None:
    question = Question("q", "Who wrote it?", (answer, "another"))
    [(ids, start)] = encoder.encode([question])
    assert encoder.prompt(question.question) + encoder.gold(question) + [encoder.eos_id] == ids
    assert encoder.gold(question) == ids[start:-1]


def test_what_stands_before_a_prompt_has_no_start_and_no_end(encoder: Encoder) -> None:
    question = Question("q", "Who wrote it?", ("Ann Lee",))
    assert encoder.start == [1]
    for ids, text in ((encoder.before("a</s>b"), "a</s>b"), (encoder.solved(question), "Question: Who wrote it? Answer: Ann Lee")):
        assert 1 not in ids and encoder.eos_id not in ids
        assert decode(encoder, ids) == f" {text}\n\n"
    asked = encoder.prompt(question.question)
    prompt = encoder.start + encoder.before("A passage.") + asked[len(encoder.start) :]
    assert prompt[-len(asked) + 1 :] == asked[1:]  # the question's tokens are those of training, whatever stands before
