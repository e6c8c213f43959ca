"""What changed since an earlier run: the comparison by id and text, the corpus and the curriculum that follow, the records file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from console import UserError
from data.config import Bios, DataConfig, Stage
from data.corpus.bios import make_bios
from data.corpus.changes import Earlier, changes_since, fit_stages, hash_of, read_earlier, untrained, write_records
from data.curriculum.arm_config import Dials
from data.curriculum.catalogue import catalogue_of
from data.curriculum.plan import compile_plan
from data.curriculum.presets import preset_stages
from data.load import load_corpus
from data.records import Corpus, Document, Part, Question


def may() -> Corpus:
    train = Part([Document("t1", "Ann lives in Rome."), Document("t2", "Bo lives in Oslo.")])
    train.questions = [Question("t1#1", "Where does Ann live?", ("Rome",), "t1"), Question("t2#1", "Where does Bo live?", ("Oslo",), "t2")]
    test = Part([Document("e1", "Cy lives in Bern."), Document("e2", "Di lives in Kyiv."), Document("e3", "Ed lives in Lima.")])
    test.questions = [
        Question("e1#1", "Where does Cy live?", ("Bern",), "e1"),
        Question("e1#2", "Who lives in Bern?", ("Cy",), "e1"),
        Question("e2#1", "Where does Di live?", ("Kyiv", "Kiev"), "e2"),
    ]
    return Corpus({"train": train, "test": test})


def june() -> Corpus:
    """Ann and Cy moved, Di's text is as it was, Ed is gone, Fay is new."""
    corpus = may()
    train, test = corpus.part("train"), corpus.part("test")
    train.documents[0] = Document("t1", "Ann lives in Nice.")
    train.questions[0] = replace(train.questions[0], answers=("Nice",))
    test.documents = [Document("e1", "Cy lives in Graz."), test.documents[1], Document("e4", "Fay lives in Doha.")]
    test.questions[0] = replace(test.questions[0], answers=("Graz",))
    test.questions.append(Question("e4#1", "Where does Fay live?", ("Doha",), "e4"))
    return corpus


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    write_records(tmp_path / "records.jsonl", may())
    return read_earlier(tmp_path / "records.jsonl")


def test_documents_by_what_became_of_them(earlier: Earlier) -> None:
    changes, moved = changes_since(june(), earlier)
    assert (changes.new, changes.changed, changes.kept, changes.removed) == (("e4",), ("t1", "e1"), ("t2", "e2"), ("e3",))
    assert changes.in_words() == "1 new, 2 changed, 2 kept, 1 removed documents (removed: e3)"
    ids = {split: [d.id for d in part.documents] for split, part in moved.parts.items()}
    assert ids == {"train": ["t1"], "test": ["e1", "e4"], "replay": ["t2", "e2"]}
    assert [q.id for q in moved.part("train").questions] == ["t1#1"] and [q.id for q in moved.part("replay").questions] == ["t2#1"]
    assert [q.id for q in moved.part("test").questions] == ["e1#1", "e1#2", "e2#1", "e4#1"]  # the whole exam is asked


def test_exam_questions_by_what_became_of_them(earlier: Earlier) -> None:
    changes, _ = changes_since(june(), earlier)
    # "Who lives in Bern?" is still answered by Cy in these questions, although the document changed.
    assert changes.status == {"e1#1": "superseded", "e1#2": "kept", "e2#1": "kept", "e4#1": "new"}
    assert changes.old_answers == {"e1#1": ("Bern",)}
    corrected = june()
    corrected.part("test").questions[2] = replace(corrected.part("test").questions[2], answers=("Odesa",))
    assert changes_since(corrected, earlier)[0].status["e2#1"] == "kept"  # another answer to the same text is a correction of the exam


def test_the_same_data_leave_nothing_to_train(earlier: Earlier) -> None:
    changes, moved = changes_since(may(), earlier)
    assert changes.nothing_new and not changes.new and not changes.changed and not changes.removed
    assert set(changes.status.values()) == {"kept"}
    for preset in ("cpt", "pit", "standard", "pit_plus_plus"):
        stages = preset_stages(preset, Dials(batch_items=2, sample_questions=1))
        assert fit_stages(stages, may(), moved) == []
    assert not changes_since(june(), earlier)[0].nothing_new


def test_each_new_and_changed_document_is_trained_as_often_as_asked(earlier: Earlier) -> None:
    _, moved = changes_since(june(), earlier)
    stage = Stage.model_validate(
        {"mix": {"train_documents": 1, "test_documents": 1, "replay_documents": 1}, "epochs": 1, "batch_items": 2, "rate": 1e-3}
    )
    (fitted,) = fit_stages([stage], june(), moved)
    catalogue = catalogue_of(moved)
    plan = compile_plan(fitted, catalogue, 0)
    trained = sorted(catalogue.ids[n] for n in plan.items)
    assert trained == ["replay_documents/e2", "replay_documents/t2", "test_documents/e1", "test_documents/e4", "train_documents/t1"]


def test_a_curriculum_is_fitted_to_what_there_is(earlier: Earlier) -> None:
    only_exam_moved = june()
    only_exam_moved.parts["train"] = may().part("train")
    _, moved = changes_since(only_exam_moved, earlier)
    pit, new = preset_stages("pit", Dials(batch_items=2, sample_questions=2))
    fitted = fit_stages([pit, new], only_exam_moved, moved)
    assert [list(stage.mix.kinds()) for stage in fitted] == [["test_documents"]] and fitted[0].sample_questions == 0
    assert untrained([pit], moved) == ["test_documents"] and untrained(fitted, moved) == []
    # A kind that the data never held is refused as ever: that is a mistake, not a quiet month.
    no_replay = Stage.model_validate({"mix": {"test_documents": 1, "replay_questions": 1}, "epochs": 1, "batch_items": 2, "rate": 1e-3})
    bare = Corpus({"test": only_exam_moved.part("test")})
    with pytest.raises(UserError, match="the data hold none"):
        compile_plan(fit_stages([no_replay], bare, changes_since(bare, earlier)[1])[0], catalogue_of(changes_since(bare, earlier)[1]), 0)


def test_shares_and_riders_are_fitted_too(earlier: Earlier) -> None:
    """What is cut out of an emptied kind goes with it, and no more replay questions ride than were kept; the rest is as written."""
    _, moved = changes_since(may(), earlier)
    kept = len(moved.part("replay").questions)
    moved.parts["test"] = june().part("test")
    stage = Stage.model_validate(
        {
            "mix": {"train_documents": 1, "test_documents": 1},
            "best_share": {"train_documents": 0.5, "test_documents": 0.5},
            "replay_share": 0.25,
            "sample_replay_questions": kept + 7,
            "epochs": 1,
            "batch_items": 2,
            "rate": 1e-3,
        }
    )
    (fitted,) = fit_stages([stage], june(), moved)
    assert fitted.best_share == {"test_documents": 0.5} and fitted.replay_share == 0.25
    assert fitted.sample_replay_questions == kept
    assert Stage.model_validate(fitted.model_dump()) == fitted


@pytest.mark.parametrize(
    ("side", "more"),
    [
        ("questions", {"input_noise": 0.1}),
        ("questions", {"prefix": "title", "sentence_shuffle": True}),
        ("documents", {"template": "alpaca", "wordings": 2}),
        ("documents", {"passages": {"document": 0.5}, "teach": {"on": "questions"}}),
    ],
)
def test_what_acts_on_what_is_gone_goes_with_it(earlier: Earlier, side: str, more: dict[str, object]) -> None:
    """The stage lies in its manifest and is read as one again: it was refused there, after training."""
    whole = may()
    train = whole.part("train")
    if side == "questions":  # a question is new and no document
        train.questions.append(Question("t1#2", "Who lives in Rome?", ("Ann",), "t1"))
    else:
        train.documents.append(Document("t3", "Gil lives in Riga."))
    _, moved = changes_since(whole, earlier)
    base = {"mix": {"train_documents": 1, "train_questions": 1}, "epochs": 1, "batch_items": 2, "rate": 1e-3}
    (fitted,) = fit_stages([Stage.model_validate({**base, **more})], whole, moved)
    assert list(fitted.mix.kinds()) == [f"train_{side}"]
    assert Stage.model_validate(fitted.model_dump()) == fitted
    compile_plan(fitted, catalogue_of(moved), 0)


def test_records_hold_hashes_and_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records(path, may())
    text = path.read_text()
    assert "lives in" not in text and "Where does" not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows[0] == {"records_format": 1, "records_sha256": may().fingerprint()}
    assert {"document": "e1", "split": "test", "text": hash_of("Cy lives in Bern.")} in rows and len(rows) == 1 + 5 + 5


@pytest.mark.parametrize("text", ["", "not json\n", '{"records_format": 99}\n', '{"records_format": 1}\n{"x": 1}\n'])
def test_broken_records_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"records.jsonl: not a list of records .*once more"):
        read_earlier(tmp_path / "records.jsonl")
    with pytest.raises(UserError, match="missing; run that experiment's"):
        read_earlier(tmp_path / "nowhere.jsonl")


def test_streamed_documents_leave_records_too(tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").write_text('{"id": "a", "text": "One."}\n{"id": "b", "text": "Two."}\n')
    found = []
    for stream in (False, True):
        source = {"path": "news.jsonl", "split": "train", "holds": "documents", "stream": stream}
        corpus = load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [source]}), 0)
        write_records(tmp_path / "records.jsonl", corpus)
        found.append(read_earlier(tmp_path / "records.jsonl").documents)
    assert found[0] == found[1] == {"a": hash_of("One."), "b": hash_of("Two.")}


def test_people_move() -> None:
    """A later edition of the made world: other cities for the first few, nothing else."""
    before, after = (make_bios(Bios(replay_people=5, train_people=6, test_people=4, moved=n), 3) for n in (0, 2))
    for split in ("train", "test", "replay"):
        for old, new in zip(before.part(split).documents, after.part(split).documents, strict=True):
            moved = split != "replay" and int(new.id.rsplit("-", 1)[1]) < 2
            assert (old.text != new.text) == moved and old.id == new.id
            assert sum(a != b for a, b in zip(old.text.split(), new.text.split(), strict=True)) == moved  # one word
        for q_old, q_new in zip(before.part(split).questions, after.part(split).questions, strict=True):
            moved = split != "replay" and q_new.id.endswith("-city") and int(q_new.id.split("-")[2]) < 2
            assert (q_old.answers != q_new.answers) == moved
            text = next(d.text for d in after.part(split).documents if d.id == q_new.doc_id)
            assert q_new.answers[0] in text
