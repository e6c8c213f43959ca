"""Mixtures by source: shares of every step, changing over a stage; coverage."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from console import UserError
from data.config import DataConfig, Source, Stage
from data.corpus.changes import fit_stages
from data.curriculum.catalogue import Catalogue, catalogue_of, declared_catalogue
from data.curriculum.mixing import counts_of, pools
from data.curriculum.plan import compile_plan
from data.load import load_corpus
from data.planning.plan_report import by_name
from data.readers import check_source
from data.records import Corpus, Document, Part

SHARES = {"news": [0.8, 0.2], "wiki": [0.2, 0.5], "qa": [0.0, 0.3]}


def stage(**changes: object) -> Stage:
    mix = {"train_documents": 1, "train_questions": 1}
    return Stage.model_validate({"mix": mix, "steps": 50, "batch_items": 10, "rate": 1e-3, "sources": SHARES, **changes})


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    root = tmp_path_factory.mktemp("sources")
    for name, size in (("news", 30), ("more", 10), ("wiki", 7)):
        (root / f"{name}.jsonl").write_text("".join(f'{{"id": "{name}{n}", "text": "Text {n} of {name}."}}\n' for n in range(size)))
    (root / "qa.jsonl").write_text("".join(f'{{"id": "q{n}", "question": "What is {n} of them?", "answer": "{n}"}}\n' for n in range(9)))
    documents = {"split": "train", "holds": "documents"}
    sources = [
        {"path": "news.jsonl", "name": "news", **documents},
        {"path": "more.jsonl", "name": "news", **documents},
        {"path": "wiki.jsonl", "name": "wiki", **documents},
        {"path": "qa.jsonl", "name": "qa", "split": "train", "holds": "questions"},
    ]
    return catalogue_of(load_corpus(DataConfig.model_validate({"root": str(root), "sources": sources}), 0))


def test_shares_go_in_a_line_and_every_item_comes_in_turn(catalogue: Catalogue) -> None:
    """500 items: of news (0.8 to 0.2) half, of wiki (0.2 to 0.5) 35 %, of questions 15 %."""
    plan, of = compile_plan(stage(), catalogue, 0), pools(stage(), catalogue)
    assert {name: len(pool) for name, pool in of.items()} == {"news": 40, "wiki": 7, "qa": 9}
    assert plan.num_steps == 50 and all(len(plan.step(n)) == 10 for n in range(50))
    number = {name: np.array([np.isin(plan.step(n), pool).sum() for n in range(50)]) for name, pool in of.items()}
    for name, (first, last) in SHARES.items():
        wanted = np.cumsum(10 * np.linspace(first, last, 50))
        assert np.abs(np.cumsum(number[name]) - wanted).max() < 1.5, name
        times = np.bincount(plan.items, minlength=len(catalogue))[of[name]]
        assert times.max() - times.min() <= 1
    assert [int(of_source.sum()) for of_source in number.values()] == [250, 175, 75]
    assert by_name(stage(), plan, catalogue)["news"] == {"items": 250, "different": 40, "of": 40, "first_tenth": 39, "last_tenth": 11}
    assert compile_plan(stage(), catalogue, 0).sha256 == plan.sha256 != compile_plan(stage(), catalogue, 1).sha256
    even = compile_plan(stage(sources={"news": 0.5, "wiki": 0.35, "qa": 0.15}), catalogue, 0)  # the twin: the same numbers, all along
    assert by_name(stage(), even, catalogue)["news"]["first_tenth"] == 25


@pytest.mark.parametrize("seed", range(20))
def test_any_shares_are_kept_to_an_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, batch, sources = int(rng.integers(1, 60)), int(rng.integers(1, 40)), int(rng.integers(1, 6))
    shares = rng.dirichlet(np.ones(sources), 2)
    counts = counts_of([(float(a), float(b)) for a, b in shares.T], steps, batch)
    assert counts.min() >= 0 and (counts.sum(axis=1) == batch).all()
    along = np.linspace(0, 1, steps)[:, None] if steps > 1 else np.zeros((1, 1))
    wanted = np.cumsum((shares[0] + (shares[1] - shares[0]) * along) * batch, axis=0)
    assert np.abs(np.cumsum(counts, axis=0) - wanted).max() < max(2, sources)


def test_names_change_no_record_and_no_other_plan(catalogue: Catalogue, tmp_path: Path) -> None:
    plain = Stage.model_validate({"mix": {"train_documents": 1}, "epochs": 1, "batch_items": 10, "rate": 1e-3})
    (tmp_path / "d.jsonl").write_text('{"id": "a", "text": "One."}\n{"id": "b", "text": "Two."}\n')
    source = {"path": "d.jsonl", "split": "train", "holds": "documents"}
    named, unnamed = (
        catalogue_of(load_corpus(DataConfig.model_validate({"root": str(tmp_path), "sources": [{**source, **name}]}), 0))
        for name in ({"name": "mine"}, {})
    )
    assert named.records == unnamed.records and repr(named.records) == repr(unnamed.records)
    assert compile_plan(plain, named, 0).sha256 == compile_plan(plain, unnamed, 0).sha256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sources": {"news": 0.5, "wiki": 0.4}}, "shares of the first step must be 1 together"),
        ({"sources": {"news": [0.5, 0.6], "wiki": 0.5}}, "shares of the last step must be 1 together"),
        ({"steps": None, "epochs": 2}, "needs steps, batch_items and order: shuffled"),
        ({"batch_items": None, "batch_tokens": 100}, "needs steps, batch_items"),
        ({"order": "sequential"}, "order: shuffled"),
        ({"sample_questions": 3}, "leave out sample_questions"),
        ({"mix": {"train_documents": 2}}, "mix each kind once"),
        ({"sources": {"news": [0.5, 0.2, 0.3]}}, "sources"),
    ],
)
def test_shares_that_mean_nothing_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        stage(**changes)


def test_what_the_data_do_not_name_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(
        UserError, match=r"sources\.nws: the stage mixes no item of a source of this name; named in data\.sources are: news, qa, wiki"
    ):
        compile_plan(stage(sources={"nws": 0.5, "wiki": 0.5}), catalogue, 0)
    with pytest.raises(UserError, match=r"sources: 9 of the stage's 56 items are of none of them, e\.g\. train_questions/q0"):
        compile_plan(stage(sources={"news": 0.5, "wiki": 0.5}), catalogue, 0)
    with pytest.raises(UserError, match=r"sources: train_documents: without data there are no names"):
        compile_plan(stage(), declared_catalogue({"train_documents": 5, "train_questions": 5}), 0)
    with pytest.raises(UserError, match=r"a streamed source keeps no names"):
        check_source(Source(path="x.jsonl", split="train", holds="documents", stream=True, name="x"))


def test_an_update_keeps_the_sources_that_something_new_is_of() -> None:
    documents = [Document("a", "One.", named="news"), Document("b", "Two.", named="wiki"), Document("c", "Three.", named="more")]
    mixed = stage(mix={"train_documents": 1}, sources={"news": [0.1, 0.6], "wiki": [0.8, 0.2], "more": [0.1, 0.2]})
    whole, moved = (Corpus({"train": Part(documents[:size])}) for size in (3, 2))
    (fitted,) = fit_stages([mixed], whole, moved)
    assert {name: tuple(round(share, 6) for share in shares) for name, shares in fitted.sources.items()} == {
        "news": (0.111111, 0.75),
        "wiki": (0.888889, 0.25),
    }
    assert fit_stages([mixed], whole, whole) == [mixed]  # the twin
