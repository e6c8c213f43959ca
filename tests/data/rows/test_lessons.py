"""Which items follow a teacher, and questions behind their document: what the rows and the teacher agree on. No model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cluster.workload import Before, read_before
from console import UserError
from data.config import Bios, Mix, Stage
from data.corpus.bios import make_bios
from data.curriculum.arm_config import Arm
from data.curriculum.catalogue import Catalogue, catalogue_of
from data.curriculum.plan import compile_plan
from data.ground.teaching import Anchor, Teach
from data.rows.flat_rows import Row, reading_of, step_rows
from data.rows.lessons import Teaching
from data.rows.token_store import TokenStore, write_store, write_wordings
from data.tokens import Encoder
from data.wording.templates import PASSAGES, Wording, wording_of
from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer
from evaluation.asking.prompts import Look, make_prompt
from trainer.store.stages import stage_facts

MIX = {"train_documents": 1, "train_questions": 1, "replay_questions": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, TokenStore, Encoder]:
    catalogue = catalogue_of(make_bios(Bios(replay_people=6, train_people=8, test_people=2), seed=0))
    folder = tmp_path_factory.mktemp("lessons")
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    encoder = Encoder(tokenizer)
    store = write_store(folder, catalogue, encoder)
    write_wordings(folder, catalogue, tokenizer, [PASSAGES, Wording(asked=3)])
    return catalogue, store, encoder


def stage(**changes: object) -> Stage:
    return Stage.model_validate({"mix": MIX, "epochs": 2, "batch_items": 12, "rate": 1e-3, **changes})


def teaching(made: tuple[Catalogue, TokenStore, Encoder], folder: Path, longest: int = 512) -> Teaching:
    catalogue, store, encoder = made
    assert store.folder
    starts = {(Wording(asked=n), kind): encoder.starts(kind) for n in (1, 3) for kind in catalogue.ranges}
    return Teaching(folder / "teachers", store.folder, catalogue, starts, {}, longest, encoder)


def rows_of(changed: Stage, made: tuple[Catalogue, TokenStore, Encoder], folder: Path, world_size: int = 1) -> list[Row]:
    catalogue, store, _ = made
    plan, worded = compile_plan(changed, catalogue, 0), store.worded(wording_of(changed))
    beside = teaching(made, folder).beside(changed, plan, worded, "start")
    reading = reading_of(changed, 0, beside.lessons, beside.passages)
    steps, ranks = range(plan.num_steps), range(world_size)
    return [row for step in steps for rank in ranks for row in step_rows(plan, worded, step, rank, world_size, 200, "example", reading)]


def items(rows: list[Row]) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """The rows' items one by one, filler left out."""
    cut = []
    for row in rows:
        for a, b in zip(row["cu_seqlens"][:-1], row["cu_seqlens"][1:], strict=True):
            one = {name: row[name][a:b] for name in ("input_ids", "loss_weight", "followed", "follow_weight") if name in row}
            if one["loss_weight"].any() or ("follow_weight" in one and one["follow_weight"].any()):
                cut.append(one)
    return cut


def test_a_question_behind_its_document_is_the_exams_open_prompt(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    catalogue, _, encoder = made
    of_id = {document.id: document for document in catalogue.records["train_documents"]}
    asked = {}
    for question in catalogue.records["train_questions"]:
        look = Look("test", "open", question, (of_id[question.doc_id].text,))  # type: ignore[union-attr,arg-type,index]
        asked[tuple(make_prompt(look, encoder, None).ids)] = question
    found = items(rows_of(stage(mix={"train_questions": 1}, passages={"document": 1}, epochs=1), made, tmp_path))
    assert len(found) == len(asked) == 40
    for one in found:
        first = int(np.flatnonzero(one["loss_weight"])[0])
        question = asked.pop(tuple(one["input_ids"][:first].tolist()))
        assert one["input_ids"][first:].tolist() == [*encoder.gold(question), encoder.eos_id]  # type: ignore[arg-type]
        assert (one["loss_weight"][first:] > 0).all()
    closed = items(rows_of(stage(mix={"train_questions": 1}, epochs=1), made, tmp_path))  # the twin
    assert not any(len(one["input_ids"]) > 40 for one in closed)


def test_the_share_is_drawn_anew_and_alike_for_every_number_of_ranks(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    half = stage(mix={"train_questions": 1}, passages={"document": 0.5}, epochs=8)
    texts = [sorted(tuple(one["input_ids"].tolist()) for one in items(rows_of(half, made, tmp_path, n))) for n in (1, 3)]
    assert texts[0] == texts[1]
    long = [text for text in texts[0] if len(text) > 40]
    assert 0.4 < len(long) / len(texts[0]) < 0.6  # 320 draws: 0.5 ± 0.028, and three and a half of those
    assert len(set(long)) > 35, "each question is drawn anew"
    assert sum(len(row["input_ids"]) for row in rows_of(half, made, tmp_path)) == sum(map(len, texts[0]))


@pytest.mark.parametrize("changes", [{}, {"wordings": 3}, {"passages": {"document": 0.5}}, {"loss_on": "everything"}])
def test_every_target_that_follows_has_a_place_of_its_own(
    made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path, changes: dict[str, object]
) -> None:
    """Whatever stands before a question and in whatever words: the same question in the same words has the same places, no other has."""
    changed = stage(teach=Teach(share=0.75), anchor=Anchor(weight=2, cross_entropy=0.5), **changes)
    places: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for one in items(rows_of(changed, made, tmp_path)):
        at = one["followed"][one["followed"] >= 0]
        if not len(at):
            assert not one["follow_weight"].any()
            continue
        taught = one["followed"] >= 0
        assert (np.diff(at) == 1).all() and taught[-len(at) :].all()
        ratio = one["loss_weight"][taught] / one["follow_weight"][taught]
        assert np.allclose(ratio, 0.25 / 0.75) or np.allclose(ratio, 0.5 / 2)
        question = tuple(one["input_ids"][-20:].tolist())
        places.setdefault(tuple(at.tolist()), set()).add(question)
        if changes.get("loss_on"):
            assert (one["loss_weight"][1 : -len(at)] > 0).all()
    catalogue, store, _ = made
    plan, worded = compile_plan(changed, catalogue, 0), store.worded(wording_of(changed))
    lessons = teaching(made, tmp_path).beside(changed, plan, worded, "start").lessons
    assert lessons
    seen = sorted(place for at in places for place in at)
    assert len(seen) == len(set(seen)) and seen[-1] < lessons.taught().offsets[-1]
    assert seen == list(range(int(lessons.taught().offsets[-1]))), "the teacher reads what no step trains"
    assert f", some {lessons.tokens_read / 3000:.2f} of the stage's own work;" in lessons.in_words(1000)
    if "wordings" in changes:
        reading = reading_of(changed, 1, lessons)
        with pytest.raises(AssertionError, match="the teacher has read other items"):  # another seed draws other wordings
            [step_rows(plan, worded, step, 0, 1, 200, "example", reading) for step in range(plan.num_steps)]
    assert all(len(texts) == 1 for texts in places.values()) or "passages" in changes


@pytest.mark.parametrize(
    "changes", [{}, {"wordings": 3, "epochs": 3}, {"mix": {**MIX, "train_documents": 1}, "teach": {"on": "everything"}}]
)
def test_the_plan_counts_what_a_teacher_reads(
    made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path, changes: dict[str, object]
) -> None:
    """But for what frames a passage, a token each; where steps draw wordings, which the plan does not, to a tenth. Items that say which weights matter are counted apart."""
    catalogue, store, _ = made
    changed = stage(**{"teach": {}, "anchor": {"ewc": 5}, **changes})
    plan, worded = compile_plan(changed, catalogue, 0), store.worded(wording_of(changed))
    beside = teaching(made, tmp_path).beside(changed, plan, worded, "start")
    before = read_before(changed, plan, worded.item_lengths, catalogue)
    assert beside.lessons and beside.important
    assert before.taught == pytest.approx(beside.lessons.tokens_read, rel=0.1 if "wordings" in changes else 0.02)
    assert before.held_items == beside.important.items and before.held == int(worded.item_lengths[beside.important.plan().items].sum())
    assert (before.teachers, before.passes) == (1, 1) and read_before(stage(), plan, worded.item_lengths, catalogue) == Before()
    more = stage(**{**changes, "teach": {"answers": "own", "share": 1, "answer_tokens": 9, "model": "base"}})
    own = read_before(more, plan, worded.item_lengths, catalogue)
    assert (own.teachers, own.passes) == (2, 10)
    if not changes:
        asked = catalogue.ranges["train_questions"]
        read = read_before(stage(teach={}), plan, worded.item_lengths, catalogue).taught
        assert own.taught == read + 9 * int(worded.item_lengths[asked.start : asked.stop].sum())


def test_rows_with_lessons_travel_whole(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    from data.rows.stream import _packed, _unpacked

    rows = rows_of(stage(teach={}, passages={"document": 0.5}), made, tmp_path)
    for sent, came in zip(rows, _unpacked(_packed(rows)), strict=True):
        assert {"followed", "follow_weight"} < set(sent) == set(came)
        assert all(np.array_equal(sent[name], came[name]) for name in sent)


def test_keys_follow_what_the_teacher_reads_and_not_how_much_it_counts(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    catalogue, store, _ = made

    def key(changed: Stage, start: str = "start") -> str:
        return teaching(made, tmp_path).beside(changed, compile_plan(changed, catalogue, 0), store, start).identities["teacher"]

    plain = key(stage(teach={}))
    assert key(stage(teach={"share": 0.9})) == plain == key(stage(teach={}, epochs=5))
    others = {
        key(stage(teach={}, anchor={})),
        key(stage(teach={"on": "everything"})),
        key(stage(teach={}), start="other"),
        key(stage(anchor={})),
    }
    assert len(others | {plain}) == 5
    nothing = teaching(made, tmp_path).beside(stage(), compile_plan(stage(), catalogue, 0), store, "start")
    assert nothing.identities == {} and nothing.lessons is None and nothing.passages is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mix": {"train_documents": 1}, "teach": {}}, "teach acts on train questions, and the stage mixes none"),
        ({"mix": {"train_questions": 1}, "teach": {"on": "documents"}}, "teach acts on train or test documents"),
        ({"mix": {"train_questions": 1}, "anchor": {}}, "anchor acts on replay items"),
        ({"teach": {"on": "everything"}, "input_noise": 0.1}, "input_noise reads a document otherwise each time"),
        ({"mix": {"train_documents": 1}, "passages": {"document": 0.5}}, "passages acts on questions"),
        ({"passages": {"document": 0.5}, "loss_on": "everything"}, "passages puts texts before questions"),
        ({"teach": {"share": 0}}, "greater than 0"),
        ({"anchor": {"weight": 0}}, "weight: 0 leaves ewc alone, which needs a value"),
        ({"anchor": {"weight": 0, "ewc": 1, "cross_entropy": 0}}, "and the items' usual loss"),
        ({"anchor": {"ewc": 1}, "adapter": {"r": 4}}, "anchor.ewc: an adapter freezes"),
        ({"teach": {"answers": "own"}}, "give share: 1"),
        ({"teach": {"answers": "own", "share": 1, "on": "everything"}}, "own is of questions"),
        ({"teach": {"temperature": 0}}, "temperature acts on the model's own answers"),
        ({"teach": {"model": "larger", "rounds": 2}}, "larger stays what it is"),
        ({"teach": {"answers": "own", "share": 1}, "loss": "token"}, "goes with loss: example alone"),
        ({"teach": {"answers": "own", "share": 1}, "passages": {"document": 0.5}}, "goes with passages: none alone"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        stage(**changes)


def test_an_arms_teacher_goes_to_the_stages_that_it_can_act_on() -> None:
    stages = [
        Stage(mix=Mix(test_documents=1), epochs=1, batch_items=1, rate=1),
        Stage(mix=Mix(train_questions=1), epochs=1, batch_items=1, rate=1),
    ]
    arm = Arm(stages=stages, teach=Teach(share=0.5))
    assert [one.teach for one in arm.with_teachers(stages)] == [None, Teach(share=0.5)]
    without = stage(teach=None)
    assert [one.teach for one in arm.with_teachers([*stages, without])] == [None, Teach(share=0.5), None], "null: none of its own"
    assert stage_facts(without) == stage_facts(stage())
    with pytest.raises(ValueError, match="anchor: no stage of the arm trains replay items"):
        Arm(stages=stages, anchor=Anchor()).with_teachers(stages)


def test_rounds_are_the_stage_written_out(made: tuple[Catalogue, TokenStore, Encoder]) -> None:
    once, thrice = stage(teach={}), stage(teach={"rounds": 3})
    assert [stage_facts(one) for one in Arm(stages=[thrice]).with_teachers([thrice])] == [stage_facts(once)] * 3
    assert stage_facts(thrice) != stage_facts(once)


@pytest.mark.parametrize("wordings", [1, 3])
def test_there_is_room_for_an_own_answer(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path, wordings: int) -> None:
    """Rows keep it behind the prompt, whatever the answer of the file; every number of ranks has the same items, and lengths that are told hold for all."""
    catalogue, store, encoder = made
    own = stage(teach={"answers": "own", "share": 1, "answer_tokens": 9}, wordings=wordings)
    for world_size in (1, 3):
        found = [one for one in items(rows_of(own, made, tmp_path, world_size)) if (one["follow_weight"] > 0).any()]
        assert len(found) == 2 * 40
        for one in found:
            assert not one["loss_weight"].any() and np.allclose(one["follow_weight"][-9:], one["follow_weight"][-1])
            assert (one["input_ids"][-9:] == encoder.eos_id).all() and not one["follow_weight"][:-9].any()
            assert (
                one["follow_weight"].sum() == pytest.approx(1 / 12, rel=1e-5) or one["follow_weight"].sum() > 1 / 12
            )  # a last step has fewer items
    worded = store.worded(wording_of(own))
    beside = teaching(made, tmp_path).beside(own, compile_plan(own, catalogue, 0), worded, "start")
    asked = catalogue.ranges["train_questions"]
    assert beside.lengths is not None and beside.lessons
    longest = max(len(one["input_ids"]) for one in found)
    assert longest <= beside.lengths[asked.start : asked.stop].max()
    kept = beside.lengths[: asked.start]
    assert np.array_equal(kept, worded.item_lengths[: asked.start])
    other = [teaching(made, tmp_path).beside(stage(teach={"answers": "own", "share": 1, **more}, wordings=wordings), compile_plan(own, catalogue, 0), worded, "start").identities["teacher"] for more in ({}, {"answer_tokens": 9}, {"answer_tokens": 9, "temperature": 0})]  # fmt: skip
    assert len(set(other)) == 3 and beside.identities["teacher"] == other[1]


@pytest.mark.parametrize("anchor", [{"weight": 1}, {"weight": 0, "ewc": 5}])
def test_what_an_anchor_holds_stands_alone(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path, anchor: dict[str, float]) -> None:
    """However it holds: rows have as many tokens as were told, and only train questions are longer than in the store. The twin has no anchor."""
    catalogue, store, _ = made

    def longer(changed: Stage) -> set[str]:
        plan = compile_plan(changed, catalogue, 0)
        beside = teaching(made, tmp_path).beside(changed, plan, store, "start")
        assert beside.lengths is not None
        rows = rows_of(changed, made, tmp_path)
        assert sum(len(row["input_ids"]) for row in rows) == int(beside.lengths[plan.items].sum())
        return {catalogue.kind_of(int(item)) for item in np.unique(plan.items) if beside.lengths[item] > store.lengths[item]}

    assert longer(stage(passages={"document": 1}, anchor=anchor)) == {"train_questions"}
    assert longer(stage(passages={"document": 1})) == {"train_questions", "replay_questions"}


def test_what_matters_is_known_by_what_is_read(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    """Not by how strongly it holds; pieces of documents that are cut are other items."""
    catalogue, store, _ = made

    def told(ewc: float, longest: int = 512, start: str = "start") -> tuple[str, int]:
        changed = stage(mix={**MIX, "replay_documents": 1}, anchor={"weight": 0, "ewc": ewc})
        beside = teaching(made, tmp_path, longest).beside(changed, compile_plan(changed, catalogue, 0), store, start)
        assert beside.important and beside.lessons is None
        return beside.identities["importance"], beside.important.longest

    assert told(5) == told(50) and told(5)[1] > 30
    assert told(5, longest=30)[1] == 30 and len({told(5)[0], told(5, 30)[0], told(5, start="other")[0]}) == 3


def test_a_torn_file_of_lessons_is_written_again(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    catalogue, store, _ = made
    taught = stage(teach={})
    plan = compile_plan(taught, catalogue, 0)
    first = teaching(made, tmp_path).lessons(taught, plan, store, "start")
    assert first
    path = Path(first[1].folder) / "lessons.npz"
    whole = path.read_bytes()
    again = teaching(made, tmp_path).lessons(taught, plan, store, "start")
    assert again and again[0] == first[0] and path.read_bytes() == whole
    for torn in (whole[: len(whole) // 2], b""):
        path.write_bytes(torn)
        assert teaching(made, tmp_path).lessons(taught, plan, store, "start")
        with np.load(path) as found:
            assert set(found) == {"items", "owners", "documents", "offsets"}


def test_another_models_lessons_do_not_follow_the_start(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    """What a fixed teacher says is the same whatever stage it stands beside: rounds read it once. The twin: the start's own follow it."""
    catalogue, store, _ = made
    of_models = replace(teaching(made, tmp_path), models={"larger": (str(tmp_path), "identity")})
    keys = {}
    for model in ("larger", None):
        taught = stage(teach=Teach(model=model))
        plan = compile_plan(taught, catalogue, 0)
        keys[model] = [found[0] for start in ("one", "another") if (found := of_models.lessons(taught, plan, store, start))]
    assert len(set(keys["larger"])) == 1 and len(set(keys[None])) == 2


def test_what_no_row_can_hold_is_refused_before_anything_starts(made: tuple[Catalogue, TokenStore, Encoder], tmp_path: Path) -> None:
    catalogue, store, _ = made
    for changed, word in ((stage(teach={}), "teach"), (stage(passages={"document": 0.5}), "passages")):
        with pytest.raises(UserError, match=f"{word}: train_questions/train-person-0-city has .* tokens behind (its document|a passage)"):
            teaching(made, tmp_path, longest=45).beside(changed, compile_plan(changed, catalogue, 0), store, "start")
    catalogue.document_of[catalogue.ranges["train_questions"].start] = -1
    with pytest.raises(UserError, match="teach: train_questions/train-person-0-city has no document"):
        teaching(made, tmp_path).beside(stage(teach={}), compile_plan(stage(teach={}), catalogue, 0), store, "start")
