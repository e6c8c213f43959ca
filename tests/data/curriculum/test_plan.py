"""Plans: coverage, order, hashes; and stages that the data cannot give."""

from collections import Counter

import numpy as np
import pytest

from console import UserError
from data.config import Bios, Mix, Stage
from data.corpus.bios import make_bios
from data.curriculum.arm_config import Dials
from data.curriculum.arms import odd_schedule
from data.curriculum.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.curriculum.plan import Plan, compile_plan, coverage, load_plan
from data.curriculum.presets import PRESETS, preset_stages
from data.records import Corpus, Document, Part, Question


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return catalogue_of(make_bios(Bios(replay_people=5, train_people=20, test_people=7), seed=0))


def stage(**changes: object) -> Stage:
    return Stage.model_validate(
        {"mix": {"train_documents": 1, "train_questions": 2}, "epochs": 3, "batch_items": 16, "rate": 1e-3, **changes}
    )


ORDERS = ["shuffled", "sequential", "questions_first", "documents_first", "questions_grouped", "documents_grouped"]


@pytest.mark.parametrize("order", ORDERS)
def test_each_item_exactly_as_often_as_asked(catalogue: Catalogue, order: str) -> None:
    plan = compile_plan(stage(order=order), catalogue, 0)
    times = Counter(plan.items.tolist())
    for kind, expected in (("train_documents", 3), ("train_questions", 6), ("test_documents", 0), ("replay_questions", 0)):
        assert {times[n] for n in catalogue.ranges[kind]} == {expected}  # type: ignore[index]


def test_no_exam_question_is_in_any_catalogue(catalogue: Catalogue) -> None:
    exam = {question.id for question in make_bios(Bios(replay_people=5, train_people=20, test_people=7), 0).parts["test"].questions}
    assert exam and not any(item_id.split("/", 1)[1] in exam for item_id in catalogue.ids)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_compiles(catalogue: Catalogue, preset: str) -> None:
    for compiled in preset_stages(preset, Dials(batch_items=8, sample_questions=4)):
        report = coverage(compile_plan(compiled, catalogue, 0), catalogue)
        assert set(compiled.mix.kinds()) <= set(report)


def places(plan: Plan, catalogue: Catalogue) -> list[tuple[int, int, bool]]:
    """(place, document item, is it a question?) in the order of training."""
    linked = [
        (n, catalogue.document_of[i] if catalogue.document_of[i] >= 0 else i, catalogue.document_of[i] >= 0)
        for n, i in enumerate(plan.items)
    ]
    return [(n, int(document), bool(question)) for n, document, question in linked]


@pytest.mark.parametrize(("order", "question_leads"), [("questions_first", True), ("documents_first", False)])
def test_interleaved_order_keeps_a_documents_items_together(catalogue: Catalogue, order: str, question_leads: bool) -> None:
    plan = compile_plan(stage(order=order, epochs=1), catalogue, 0)
    by_document: dict[int, list[tuple[int, bool]]] = {}
    for n, document, question in places(plan, catalogue):
        by_document.setdefault(document, []).append((n, question))
    for members in by_document.values():
        numbers = [n for n, _ in members]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # neighbours
        assert [q for _, q in members] == sorted((q for _, q in members), reverse=question_leads)


def test_wrong_order_would_be_seen(catalogue: Catalogue) -> None:
    """The twin: the same items shuffled do not pass for questions_first."""
    plan = compile_plan(stage(order="shuffled", epochs=1), catalogue, 0)
    kinds = [question for _, _, question in places(plan, catalogue)]
    first = compile_plan(stage(order="questions_first", epochs=1), catalogue, 0)
    assert kinds != [question for _, _, question in places(first, catalogue)]


def test_grouped_order_is_q_q_q_d_d_d(catalogue: Catalogue) -> None:
    plan = compile_plan(stage(order="questions_grouped", mix={"train_documents": 1, "train_questions": 1}), catalogue, 0)
    document = int(catalogue.ranges["train_documents"][0])
    questions = [question for _, d, question in places(plan, catalogue) if d == document]
    assert questions == [True] * 15 + [False] * 3


def test_steps_of_the_paper() -> None:
    """arXiv 2402.12847: batch 256 gives 46 steps an epoch for the train QA, 53 for train QA and documents, 1 for the test documents."""
    film = declared_catalogue({"train_documents": 1720, "train_questions": 11603, "test_documents": 256, "test_questions": 1743})
    steps = {
        name: [compile_plan(s, film, 0).num_steps for s in preset_stages(name, Dials())]
        for name in ("cpt", "standard", "pit", "pit_qa_only")
    }
    assert steps == {"cpt": [10], "standard": [80, 46], "pit": [159, 10], "pit_qa_only": [138, 10]}


def test_hash_follows_the_order_and_nothing_else(catalogue: Catalogue) -> None:
    plan = compile_plan(stage(), catalogue, 0)
    assert compile_plan(stage(), catalogue, 0).sha256 == plan.sha256
    assert compile_plan(stage(rate=5e-3), catalogue, 0).sha256 == plan.sha256  # two rates are compared on the same batches
    assert compile_plan(stage(), catalogue, 1).sha256 != plan.sha256
    assert compile_plan(stage(batch_items=17), catalogue, 0).sha256 != plan.sha256
    assert compile_plan(stage(order="sequential"), catalogue, 0).sha256 != plan.sha256


def test_saved_and_loaded(catalogue: Catalogue, tmp_path) -> None:  # type: ignore[no-untyped-def]
    plan = compile_plan(stage(), catalogue, 0)
    plan.save(tmp_path / "plan.npz")
    again = load_plan(tmp_path / "plan.npz")
    assert np.array_equal(again.items, plan.items) and np.array_equal(again.starts, plan.starts) and again.sha256 == plan.sha256


def test_riders_come_in_every_epoch_and_add_no_step(catalogue: Catalogue) -> None:
    plain = compile_plan(stage(mix={"test_documents": 1}, batch_items=7), catalogue, 0)
    riding = compile_plan(stage(mix={"test_documents": 1}, batch_items=7, sample_questions=9), catalogue, 0)
    assert plain.num_steps == riding.num_steps == 3
    assert len(riding.items) - len(plain.items) == 27


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mix": {"replay_questions": 1}}, "the data hold none"),
        ({"sample_questions": 101}, "hold 100"),
        ({"mix": {"train_questions": 1}, "order": "questions_first"}, "have none"),
    ],
)
def test_impossible_stages_are_refused(changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    corpus = make_bios(Bios(replay_people=0, train_people=20, test_people=7), 0)
    catalogue = catalogue_of(corpus)
    if "order" in changes:
        catalogue.document_of[:] = -1
    with pytest.raises(UserError, match=reason):
        compile_plan(stage(**changes), catalogue, 0)


def test_mix_names_no_exam() -> None:
    assert "test_questions" not in Mix.model_fields


def test_declared_tokens_cut_steps_without_data() -> None:
    by_tokens = Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 1, "batch_tokens": 1000, "rate": 1e-3})
    declared = declared_catalogue({"train_documents": 10}, {"train_documents": 300})
    assert (
        declared.declared_tokens is not None and compile_plan(by_tokens, declared, 0, declared.declared_tokens).num_steps == 4
    )  # 3 a step
    assert declared_catalogue({"train_documents": 10}).declared_tokens is None  # and then batch_tokens is refused
    with pytest.raises(UserError, match="batch_tokens needs the items' lengths"):
        compile_plan(by_tokens, declared, 0, None)


def test_schedules_that_cannot_be_as_written() -> None:
    """The last warm-up step is the first at the whole rate: as many as the stage has can be, one more cannot."""
    cosine = stage(warmup_steps=7)
    assert odd_schedule(cosine, 7) is None and odd_schedule(stage(warmup_share=0.9), 7) is None
    why = odd_schedule(cosine, 6)
    assert why and why.startswith("warmup_steps 7 is longer than the stage of 6 steps: the rate never comes beyond")
    wsd = stage(warmup_steps=7, schedule="wsd", decay_share=0.5)
    assert odd_schedule(wsd, 14) is None
    assert (odd_schedule(wsd, 12) or "").startswith(
        "schedule wsd: warm-up (7 steps) and decay (6) are longer together than the stage of 12"
    )


def test_a_new_question_finds_its_document_among_what_was_held_before() -> None:
    """An update moves an unchanged document to replay; a question that is new is trained, and goes with it."""
    held, new = Document("held", "Ada was born in Oslo."), Document("new", "Bo was born in Bern.")
    asked = [Question("q1", "Where was Ada born?", ("Oslo",), "held"), Question("q2", "Where was Bo born?", ("Bern",), "new")]
    corpus = Corpus({"train": Part(documents=[new], questions=asked), "replay": Part(documents=[held])})
    catalogue = catalogue_of(corpus)
    first = catalogue.ranges["train_questions"].start
    of = [catalogue.ids[int(n)] for n in catalogue.document_of[first : first + 2]]
    assert of == ["replay_documents/held", "train_documents/new"]
