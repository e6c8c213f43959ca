"""The stage language: what each setting does to a plan or a row, and that none of them changes plans made before it existed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from console import UserError
from data.config import Bios, Stage
from data.corpus.bios import make_bios
from data.curriculum.arm_config import Dials
from data.curriculum.arms import compile_arms, stage_graph
from data.curriculum.catalogue import Catalogue, catalogue_of
from data.curriculum.orders import level_key
from data.curriculum.plan import Plan, compile_plan
from data.curriculum.presets import preset_stages
from data.records import Corpus, Document, Part, Question
from data.rows.flat_rows import reading_of, step_rows
from data.rows.token_store import TokenStore, write_store, write_wordings
from data.tokens import Encoder
from data.wording.templates import Wording, question_prompt, wording_of
from data.wording.tiny_tokenizer import make_tokenizer, texts_for_tokenizer
from trainer.schedule import learning_rate

BIOS = Bios(replay_people=5, train_people=20, test_people=7)

# Written down before the fields below existed.
ORDERS = {
    "shuffled": "39936082f9dbd4d9",
    "sequential": "a71fb8d464b76070",
    "questions_first": "b26346dff6c3eb39",
    "documents_first": "3c79052e345f2d92",
    "questions_grouped": "d261eae5755885d5",
    "documents_grouped": "b15179302b6421e5",
}
PLANS_BEFORE = {
    "cpt": ["2e5b0ce4809e2f3f"],
    "standard": ["3eb2ba1c8c4ffa13", "1835cc6d912617af"],
    "standard_no_forgetting": ["3eb2ba1c8c4ffa13", "98509ba5331bca11"],
    "mix": ["c2529e04adc8dbb7"],
    "pit_qa_only": ["bbd10772ed8c8623", "2e5b0ce4809e2f3f"],
    "pit_sequential": ["bbd10772ed8c8623", "dd7bb5c45fa17c3d", "2e5b0ce4809e2f3f"],
    "pit": ["b5667c9604b5dc18", "2e5b0ce4809e2f3f"],
    "pit_plus_plus": ["1835cc6d912617af", "b5667c9604b5dc18", "2e5b0ce4809e2f3f"],
    "it_without_train_doc": ["2bb11b7a0b2adbfe", "1835cc6d912617af"],
    "adapted_cpt": ["dd7bb5c45fa17c3d", "2e5b0ce4809e2f3f"],
    "pit_minus_minus": ["b5667c9604b5dc18", "1835cc6d912617af", "2e5b0ce4809e2f3f"],
}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return catalogue_of(make_bios(BIOS, seed=0))


@pytest.fixture(scope="module")
def store(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    made = write_store(folder, catalogue, Encoder(tokenizer))
    write_wordings(folder, catalogue, tokenizer, [Wording("alpaca"), Wording(prefix="title"), Wording(sentences=True)])
    return made


def stage(**changes: object) -> Stage:
    values = {"mix": {"train_documents": 1, "train_questions": 2}, "epochs": 3, "batch_items": 16, "rate": 1e-3, **changes}
    return Stage.model_validate({key: value for key, value in values.items() if value is not None})


def rows_of(changed: Stage, plan: Plan, store: TokenStore, step: int = 0, world_size: int = 1, seed: int = 0) -> list[dict]:  # type: ignore[type-arg]
    worded = store.worded(wording_of(changed))
    ranks = [step_rows(plan, worded, step, rank, world_size, 256, changed.loss, reading_of(changed, seed)) for rank in range(world_size)]
    return [row for rank in ranks for row in rank]


@pytest.mark.parametrize("order", ORDERS)
def test_plans_made_before_stay(catalogue: Catalogue, order: str) -> None:
    assert compile_plan(stage(order=order, sample_questions=4), catalogue, 3).sha256.startswith(ORDERS[order])


@pytest.mark.parametrize("preset", PLANS_BEFORE)
def test_presets_made_before_stay(catalogue: Catalogue, preset: str) -> None:
    plans = [compile_plan(s, catalogue, 0) for s in preset_stages(preset, Dials(batch_items=8, sample_questions=4))]
    assert [plan.sha256[:16] for plan in plans] == PLANS_BEFORE[preset]


def levelled() -> Catalogue:
    questions = [
        Question(f"q{n}", f"What is {n}?", (str(n),), "d", level) for n, level in enumerate(["10", "2", "easy", "2", "10", "hard"])
    ]
    part = Part([Document("d", "Numbers."), Document("e", "More numbers.")], questions)
    return catalogue_of(Corpus({"train": part}))


def test_by_level_takes_low_levels_first_and_documents_last() -> None:
    catalogue = levelled()
    plan = compile_plan(stage(order="by_level", mix={"train_documents": 1, "train_questions": 1}, epochs=2, batch_items=100), catalogue, 0)
    first = catalogue.ranges["train_questions"].start
    levels = ["10", "2", "easy", "2", "10", "hard"]
    for epoch in (plan.step(0), plan.step(1)):
        named = [levels[n - first] if n >= first else "document" for n in epoch]
        assert named == ["2", "2", "10", "10", "easy", "hard", "document", "document"]
    shuffled = compile_plan(stage(mix={"train_documents": 1, "train_questions": 1}, epochs=1, batch_items=100), catalogue, 0)
    assert not np.array_equal(shuffled.step(0), plan.step(0))  # the twin


def test_levels_compare_as_numbers_where_they_are_numbers() -> None:
    assert sorted(["level 10", "B", "level 2", "3", "12"], key=level_key) == ["3", "12", "B", "level 2", "level 10"]


def test_spaced_repeats_come_back_at_growing_gaps(catalogue: Catalogue) -> None:
    wanted = {"mix": {"train_questions": 1}, "epochs": 4, "batch_items": 10}
    plan = compile_plan(stage(order="spaced", **wanted), catalogue, 0)
    gaps = np.array([np.diff(np.flatnonzero(plan.items == n)) for n in catalogue.ranges["train_questions"]])
    assert np.mean((gaps[:, 1] > gaps[:, 0]) & (gaps[:, 2] > gaps[:, 1])) > 0.95
    plain = compile_plan(stage(**wanted), catalogue, 0)
    gaps = np.array([np.diff(np.flatnonzero(plain.items == n)) for n in catalogue.ranges["train_questions"]])
    assert np.mean((gaps[:, 1] > gaps[:, 0]) & (gaps[:, 2] > gaps[:, 1])) < 0.5  # the twin: shuffled epochs do not


def test_steps_cut_the_last_pass_and_begin_as_more_steps_do(catalogue: Catalogue) -> None:
    short, long = (compile_plan(stage(epochs=None, steps=n), catalogue, 0) for n in (5, 31))
    assert short.num_steps == 5 and long.num_steps == 31
    assert all(np.array_equal(short.step(n), long.step(n)) for n in range(5))
    whole = compile_plan(stage(epochs=1), catalogue, 0)
    assert all(np.array_equal(short.step(n), whole.step(n)) for n in range(5))
    assert short.sha256 != long.sha256


def test_token_batches_stay_within_the_budget_and_are_as_full_as_order_allows(catalogue: Catalogue, store: TokenStore) -> None:
    lengths = store.lengths.copy()
    lengths[3] = 500  # longer than the budget: alone
    plan = compile_plan(stage(batch_items=None, batch_tokens=300, epochs=2, mix={"train_documents": 1}), catalogue, 0, lengths)
    tokens = [int(lengths[plan.step(n)].sum()) for n in range(plan.num_steps)]
    assert all(t <= 300 or len(plan.step(n)) == 1 for n, t in enumerate(tokens)) and max(tokens) == 500
    for n, m in pairwise(range(plan.num_steps)):
        last_of_epoch = sum(len(plan.step(k)) for k in range(m)) % 20 == 0
        assert last_of_epoch or tokens[n] + lengths[plan.step(m)[0]] > 300
    with pytest.raises(UserError, match="data.root"):
        compile_plan(stage(batch_items=None, batch_tokens=300), catalogue, 0)


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    wsd = stage(schedule="wsd", warmup_steps=4, decay_share=0.25, final_rate_share=0.2)
    rates = [learning_rate(wsd, n, 40) / wsd.rate for n in range(40)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and rates[4:31] == pytest.approx([1.0] * 27)
    assert np.diff(rates[30:]) == pytest.approx([-0.08] * 9)


def weights_by_item(rows: list[dict], key: str = "input_ids") -> list[tuple[np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    return [(row[key][a:b], row["loss_weight"][a:b]) for row in rows for a, b in pairwise(row["cu_seqlens"])]


def test_loss_on_everything_reaches_into_the_prompt(catalogue: Catalogue, store: TokenStore) -> None:
    for loss_on, from_token in (("answers", None), ("everything", 1)):
        changed = stage(mix={"train_questions": 1}, loss_on=loss_on, batch_items=8)
        plan = compile_plan(changed, catalogue, 0)
        rows = rows_of(changed, plan, store)
        starts = {store.item(int(n)).astype(np.int64).tobytes(): from_token or int(store.loss_start[n]) for n in plan.step(0)}
        for ids, weight in weights_by_item(rows):
            assert np.flatnonzero(weight)[0] == starts[ids.tobytes()] and weight[-1] > 0
            assert weight.sum() == pytest.approx(1 / len(plan.step(0)), rel=1e-5)


def test_weighted_tokens_halve_what_occurs_in_no_train_answer(catalogue: Catalogue, store: TokenStore) -> None:
    [cpt] = preset_stages("weighted_cpt", Dials(batch_items=7, sample_questions=0))
    plan = compile_plan(cpt, catalogue, 0)
    questions = catalogue.ranges["train_questions"]
    answers = {int(t) for n in questions for t in store.item(n)[store.loss_start[n] : -1]}
    seen = set()
    for ids, weight in weights_by_item(rows_of(cpt, plan, store, world_size=2)):
        if not weight.any():
            continue  # filler
        shares = np.array([1.0 if int(t) in answers else 0.5 for t in ids[1:]])
        assert weight[1:] == pytest.approx(shares / shares.sum() / 7, rel=1e-5)
        seen |= set(shares)
    assert seen == {0.5, 1.0}


def test_weights_never_look_at_the_exam(tmp_path: Path) -> None:
    def in_answers(exam_answer: str) -> np.ndarray:
        train = Part([Document("a", "Ann wrote Dune in Boston.")], [Question("q", "Who wrote Dune?", ("Ann",), "a")])
        test = Part([Document("b", "Bob lives in Denver.")], [Question("t", "Where does Bob live?", (exam_answer,), "b")])
        catalogue = catalogue_of(Corpus({"train": train, "test": test}))
        aids = write_store(tmp_path / exam_answer, catalogue, Encoder(make_tokenizer(["Denver Boston Ann Dune Bob"], 400))).aids
        assert aids is not None
        return aids.in_answers

    assert np.array_equal(in_answers("Denver"), in_answers("Boston"))


def test_alpaca_words_the_question_and_keeps_the_loss_on_the_answer(catalogue: Catalogue, store: TokenStore) -> None:
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    question = catalogue.records["train_questions"][0]
    assert isinstance(question, Question)
    [(ids, start)] = Encoder(tokenizer, Wording("alpaca")).encode([question])
    # the tiny tokenizer starts every text with a space
    assert tokenizer.decode(ids[1:start]) + "\n" == " " + question_prompt(question.question, "alpaca")
    assert tokenizer.decode(ids[start:]) == f"\n{question.answers[0]}</s>"
    assert store.worded(Wording("alpaca")).sha256 != store.sha256


def test_prefix_is_read_and_not_learnt(catalogue: Catalogue, store: TokenStore) -> None:
    titled = stage(mix={"train_documents": 1}, prefix="title", batch_items=4)
    plan = compile_plan(titled, catalogue, 0)
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    titles = {d.text: d.title for d in catalogue.records["train_documents"] if isinstance(d, Document)}
    for ids, weight in weights_by_item(rows_of(titled, plan, store)):
        first = int(np.flatnonzero(weight)[0])
        text = tokenizer.decode(ids[first:])
        assert tokenizer.decode(ids[1:first]) == f" {titles[text]}\n" and (weight[first:] > 0).all()


def test_noise_replaces_a_share_of_the_inputs_and_keeps_the_targets(catalogue: Catalogue, store: TokenStore) -> None:
    noisy, plain = stage(input_noise=0.2), stage()
    plan = compile_plan(noisy, catalogue, 0)
    assert plan.sha256 == compile_plan(plain, catalogue, 0).sha256
    rows, clean = rows_of(noisy, plan, store), rows_of(plain, plan, store)
    assert all("target_ids" not in row for row in clean)
    changed = [0, 0]
    for row, same in zip(rows, clean, strict=True):
        assert np.array_equal(row["target_ids"], same["input_ids"]) and np.array_equal(row["loss_weight"], same["loss_weight"])
        for a, b in pairwise(row["cu_seqlens"]):
            different = int((row["input_ids"][a:b] != row["target_ids"][a:b]).sum())
            document = row["loss_weight"][a + 1] > 0
            assert document or different == 0  # questions stay as they are
            assert different <= round(0.2 * (b - a - 1))
            changed = [changed[0] + different, changed[1] + int(b - a - 1)] if document else changed
        assert not np.isin(row["input_ids"][row["input_ids"] != row["target_ids"]], [0, 1, 2]).any()  # no control tokens
    assert 0.15 < changed[0] / changed[1] <= 0.2  # a random token may be the right one
    again = rows_of(noisy, plan, store)
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, again, strict=True))
    other = rows_of(noisy, plan, store, seed=1)
    assert any(not np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, other, strict=True))


def test_noise_is_the_same_at_any_world_size_and_when_split_over_rows(catalogue: Catalogue, store: TokenStore) -> None:
    noisy = stage(input_noise=0.5, mix={"train_documents": 1}, batch_items=20)
    plan = compile_plan(noisy, catalogue, 0)

    def inputs(world_size: int) -> set[bytes]:
        return {ids.tobytes() for ids, weight in weights_by_item(rows_of(noisy, plan, store, world_size=world_size)) if weight.any()}

    assert inputs(1) == inputs(3)
    longest = int(np.argmax(store.lengths[plan.step(0)]))
    pieces = [row for row in step_rows(plan, store, 0, 0, 1, 20, "example", reading_of(noisy, 0))]  # rows of 20 tokens cut every biography
    assert sum(row["loss_weight"].sum() for row in pieces) == pytest.approx(1.0, rel=1e-5)
    assert store.lengths[plan.step(0)[longest]] > 20


def test_row_loss_takes_targets_from_target_ids(catalogue: Catalogue, store: TokenStore) -> None:
    import torch

    from tests.numerics.ranks.steps import made_model
    from trainer.step.plain import PlainEngine
    from trainer.step.step import row_loss

    engine = PlainEngine(made_model(), (0.9, 0.95), 0.0, 0.0)
    ids = np.arange(3, 23, dtype=np.int64)
    weight = np.full(20, 0.1, dtype=np.float32)
    row = {"input_ids": ids, "position_ids": np.arange(20), "loss_weight": weight, "cu_seqlens": np.array([0, 20], dtype=np.int32)}
    noisy = {**row, "input_ids": np.where(ids % 3 == 0, 40, ids), "target_ids": ids}
    logits = made_model("sdpa")(input_ids=torch.as_tensor(noisy["input_ids"])[None], position_ids=torch.arange(20)[None]).logits[0]
    expected = 0.1 * torch.nn.functional.cross_entropy(logits[:-1], torch.as_tensor(ids[1:]), reduction="sum")
    without = {key: value for key, value in noisy.items() if key != "target_ids"}
    assert row_loss(engine, noisy, "by_item").item() == pytest.approx(expected.item(), rel=1e-5)  # float32, other kernels
    assert row_loss(engine, without, "by_item").item() != pytest.approx(expected.item(), rel=1e-4)  # the twin: noise as target


def test_sentence_shuffle_permutes_whole_sentences_anew_each_step(catalogue: Catalogue, store: TokenStore) -> None:
    shuffled = stage(mix={"train_documents": 1}, sentence_shuffle=True, batch_items=20, epochs=3)
    plan = compile_plan(shuffled, catalogue, 0)
    tokenizer = make_tokenizer(texts_for_tokenizer(catalogue.records), 2048)
    original = {
        frozenset(s.strip() for s in d.text.split(".")): d.text for d in catalogue.records["train_documents"] if isinstance(d, Document)
    }
    orders: dict[str, set[str]] = {}
    for step in range(3):
        for ids, weight in weights_by_item(rows_of(shuffled, plan, store, step)):
            assert ids[0] == 1 and (weight[1:] > 0).all()
            text = tokenizer.decode(ids[1:])
            orders.setdefault(original[frozenset(s.strip() for s in text.split("."))], set()).add(text)
    assert len(orders) == 20 and sum(len(texts) > 1 for texts in orders.values()) >= 18


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"order": "by_level"}, "level on every question; 100 of 100"), ({"prefix": "url"}, "none of the 20 documents has a url")],
)
def test_data_that_lack_what_a_stage_needs_are_refused_by_place(catalogue: Catalogue, changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=rf"^arms\.mine\.stages\.1: .*{reason}"):
        compile_arms({"base": [stage()], "mine": [stage(), stage(), stage(**changes)]}, catalogue, 0)


def test_graph_shares_what_begins_alike(catalogue: Catalogue) -> None:
    arms = {name: preset_stages(name, Dials(batch_items=8, sample_questions=4)) for name in ("pit", "pit_minus_minus", "pit_plus_plus")}
    graph = stage_graph(arms, compile_arms(arms, catalogue, 0))
    assert graph.num_stages() == 2 + 2 + 3  # pit_minus_minus has the first stage of pit
    assert len(graph.after) == 2
