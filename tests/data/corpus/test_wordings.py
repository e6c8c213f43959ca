"""Questions in other words: trained where a stage says so, asked where the exam does, never both; and nothing changes where neither does."""

import json
from pathlib import Path

import numpy as np
import pytest

from console import UserError
from data.config import Bios, DataConfig, Stage
from data.corpus.bios import make_bios
from data.curriculum.arm_config import Dials
from data.curriculum.catalogue import Catalogue, catalogue_of
from data.curriculum.plan import compile_plan
from data.curriculum.presets import preset_stages
from data.load import load_corpus
from data.planning.lengths import count_lengths
from data.records import Corpus, Question
from data.rows.flat_rows import reading_of, step_rows
from data.rows.token_store import TokenStore, store_key, write_store, write_wordings
from data.tokens import Encoder
from data.wording.templates import PLAIN, Wording, question_text, wording_of
from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer
from trainer.store.stages import stage_facts

STAGE = {"mix": {"train_questions": 1, "train_documents": 1}, "epochs": 8, "batch_items": 24, "rate": 1e-3}
FEW = Stage.model_validate({**STAGE, "wordings": 3})


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return catalogue_of(make_bios(Bios(replay_people=2, train_people=4, test_people=2), seed=0))


@pytest.fixture(scope="module")
def stores(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, TokenStore, TokenStore]:
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    plain = write_store(folder, catalogue, Encoder(tokenizer))
    write_wordings(folder, catalogue, tokenizer, [Wording(asked=3), Wording("alpaca", asked=3)])
    return Encoder(tokenizer), plain, plain.worded(wording_of(FEW))


def said(stage: Stage, catalogue: Catalogue, store: TokenStore, encoder: Encoder, seed: int = 0, ranks: int = 1) -> list[str]:
    """Every item of a stage as it is read, in the order of steps and, within one, of texts: ranks share a step out."""
    plan, texts = compile_plan(stage, catalogue, 0), []
    for step in range(plan.num_steps):
        rows = [row for rank in range(ranks) for row in step_rows(plan, store, step, rank, ranks, 512, "example", reading_of(stage, seed))]
        items = [row["input_ids"][a:b] for row in rows for a, b in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False)]
        texts += sorted(encoder._backend.decode(list(ids)) for ids in items)
    return texts


def test_each_time_in_one_of_its_wordings(catalogue: Catalogue, stores: tuple[Encoder, TokenStore, TokenStore]) -> None:
    encoder, _, store = stores
    texts = said(FEW, catalogue, store, encoder)
    assert texts == said(FEW, catalogue, store, encoder, ranks=3), "whoever reads them"
    assert texts != said(FEW, catalogue, store, encoder, seed=1)
    for question in catalogue.records["train_questions"]:
        assert isinstance(question, Question)
        asked = [question.question, *question.wordings[:2]]
        times = [sum(f"Question: {words} Answer: {question.answers[0]}" in text for text in texts) for words in asked]
        assert sum(times) == 8, "as often as asked, and in no fourth wording"
    several = [q for q in catalogue.records["train_questions"] if sum(any(w in text for text in texts) for w in q.wordings[:2]) == 2]  # type: ignore[union-attr]
    assert len(several) > 15, "of 20: a wording is not met in eight times with a probability of 4 %"


def test_one_wording_is_what_it_was(catalogue: Catalogue, stores: tuple[Encoder, TokenStore, TokenStore]) -> None:
    """Keys of stores and stages do not know of wordings where a stage has one; the twins do."""
    encoder, plain, few = stores
    one = Stage.model_validate(STAGE)
    assert wording_of(one) == PLAIN and repr(PLAIN) == "Wording(template='pit', prefix='none', sentences=False)"
    assert "wordings" not in stage_facts(one) and stage_facts(FEW)["wordings"] == 3
    bare = catalogue_of(
        Corpus({s: _without(p) for s, p in make_bios(Bios(replay_people=2, train_people=4, test_people=2), 0).parts.items()})
    )
    assert store_key(bare, encoder) == store_key(catalogue, encoder)
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    assert store_key(bare, Encoder(tokenizer, Wording(asked=3))) != store_key(catalogue, Encoder(tokenizer, Wording(asked=3)))
    assert few.sha256 != plain.sha256 and np.array_equal(few.tokens[: len(plain.tokens)], plain.tokens)
    assert compile_plan(FEW, catalogue, 0).sha256 == compile_plan(one, catalogue, 0).sha256, "the same items in the same steps"


def _without(part):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(part, questions=[replace(question, wordings=()) for question in part.questions])


def test_steps_are_cut_by_the_longest_wording(catalogue: Catalogue, stores: tuple[Encoder, TokenStore, TokenStore]) -> None:
    encoder, _, store = stores
    question = catalogue.records["train_questions"][3]  # type: ignore[index]
    longest = max(
        len(encoder.encode([Question("x", words, question.answers)])[0][0]) for words in (question.question, *question.wordings[:2])
    )
    assert store.item_lengths[catalogue.ranges["train_questions"].start + 3] == longest
    assert len(store.item_lengths) == len(catalogue) < len(store.lengths)
    counted = count_lengths(catalogue, None, None, 2048)
    assert counted.of(FEW).tolist() == store.item_lengths.tolist()  # type: ignore[union-attr]


def test_other_templates_word_them_too(catalogue: Catalogue, stores: tuple[Encoder, TokenStore, TokenStore]) -> None:
    encoder, plain, _ = stores
    store = plain.worded(Wording("alpaca", asked=3))
    assert store.others is not None
    question = catalogue.records["train_questions"][0]  # type: ignore[index]
    first = int(store.others.first[catalogue.ranges["train_questions"].start])
    worded = Question("x", question.wordings[0], question.answers)
    assert encoder._backend.decode(list(store.item(first))).strip() == question_text(worded, "alpaca")


def test_presets_train_in_several(catalogue: Catalogue) -> None:
    stages = preset_stages("pit_plus_plus", Dials(batch_items=8, sample_questions=4, wordings=4))
    assert [stage.wordings for stage in stages] == [4, 4, 4]
    assert [stage.wordings for stage in preset_stages("standard", Dials(sample_questions=4, wordings=4))] == [1, 4]


def test_no_other_wording_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(UserError, match="none of its questions has another wording; write some with python -m data wordings"):
        bare = {s: _without(p) for s, p in make_bios(Bios(replay_people=2, train_people=4, test_people=2), 0).parts.items()}
        compile_plan(FEW, catalogue_of(Corpus(bare)), 0)
    with pytest.raises(ValueError, match="wordings acts on questions, and the stage mixes none"):
        Stage.model_validate({**STAGE, "mix": {"train_documents": 1}, "wordings": 2})


def data_with(folder: Path, *rows: object) -> DataConfig:
    (folder / "train.jsonl").write_text(
        '{"question": "Who was Ada?", "answer": "a poet"}\n{"question": "Who was Bo?", "answer": "a king"}\n'
    )
    (folder / "test.jsonl").write_text('{"question": "Who was Cy?", "answer": "a cook"}\n')
    (folder / "wordings.jsonl").write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    sources = [{"path": f"{split}.jsonl", "split": split, "holds": "questions"} for split in ("train", "test")]
    return DataConfig.model_validate({"root": str(folder), "sources": sources, "wordings": "wordings.jsonl"})


def test_a_file_of_wordings_stands_beside_the_set(tmp_path: Path) -> None:
    rows = [
        {"question": "Who was Ada?", "wordings": ["What was Ada?", "who was ada", "What was Ada?", "Of Cy, tell me all."]},
        {"question": "Who was Cy?", "wordings": ["What was Cy?", "Of Cy: tell me all!", "who was Bo?"]},
        {"question": "Who was Dee?", "wordings": ["What was Dee?"]},
    ]
    corpus = load_corpus(data_with(tmp_path, *rows), 0)
    [ada, bo] = corpus.part("train").questions
    assert (ada.wordings, bo.wordings) == (("What was Ada?", "Of Cy, tell me all."), ())
    assert corpus.part("test").questions[0].wordings == ("What was Cy?",), "the others are trained: as a wording, and as a question"
    intake = corpus.intakes[-1]
    assert (intake.rows_read, intake.rows_used, [r.where for r in intake.refused]) == (3, 2, [f"{tmp_path}/wordings.jsonl:3"])
    assert intake.notes == {"wordings of the exam that are also trained: left out": 2}
    plain = load_corpus(data_with(tmp_path, *rows).model_copy(update={"wordings": None}), 0)
    assert plain.fingerprint() == corpus.fingerprint(), "records are what they were"


def test_a_wording_that_is_an_exam_question_is_not_trained(tmp_path: Path) -> None:
    """Whatever data.overlap allows: it compares questions, and this is one only where a stage trains several wordings."""
    corpus = load_corpus(data_with(tmp_path, {"question": "Who was Ada?", "wordings": ["who was CY", "What was Ada?"]}), 0)
    assert corpus.part("train").questions[0].wordings == ("What was Ada?",)
    assert corpus.intakes[-1].notes == {"trained wordings that the exam asks: left out": 1}
    config = data_with(
        tmp_path, {"question": "Who was Ada?", "wordings": ["Was Ada a poet?"]}, {"question": "Who was Ada?", "wordings": ["What was Ada?"]}
    )
    assert load_corpus(config, 0).part("train").questions[0].wordings == ("Was Ada a poet?", "What was Ada?")  # of two lines
    (tmp_path / "choices.jsonl").write_text('{"question": "Was Ada a poet?", "choices": ["yes", "no"], "answer": "A"}\n')
    asked = config.model_dump(exclude_unset=True)
    asked["sources"].append({"path": "choices.jsonl", "split": "test", "holds": "choices"})
    corpus = load_corpus(DataConfig.model_validate(asked), 0)
    assert corpus.part("test").choices and corpus.part("train").questions[0].wordings == ("What was Ada?",), "multiple choice is asked too"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            '{"question": "Who was Ada?", "wordings": "What was Ada?"}\n',
            r"wordings.jsonl:1: expected {\"question\": a text, \"wordings\": \[texts\]}",
        ),
        ('{"question": "Who was Ada?", "wordings": [" "]}\n', "wordings.jsonl:1: expected"),
        ("[1]\n", "wordings.jsonl:1: expected"),
        ("\n{\n", "wordings.jsonl:2: malformed JSON"),
        ('{"question": "Who was Eve?", "wordings": ["What was Eve?"]}\n', "none of its questions is one of the experiment's"),
        ("", "none of its questions is one of the experiment's"),
    ],
)
def test_a_bad_file_of_wordings_is_refused_in_one_line(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        load_corpus(data_with(tmp_path, row), 0)
    assert "\n" not in str(refused.value)


def test_a_missing_file_of_wordings(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.wordings: .*none.jsonl: cannot be read: No such file or directory; write it with python -m data wordings"
    ):
        load_corpus(data_with(tmp_path, "").model_copy(update={"wordings": "none.jsonl"}), 0)
