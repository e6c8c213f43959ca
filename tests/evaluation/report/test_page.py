"""report.html from made reports: its structure, that nothing written by others becomes markup, and blocks that are not there."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import ExamConfig
from evaluation.exam import Exam, build_exam
from evaluation.examining.trained import collect, excerpt, only_right, thinned
from evaluation.report.blocks import markdown_blocks
from evaluation.report.page import page, words
from evaluation.report.plots import not_beaten
from evaluation.report.render import markdown
from evaluation.score_files import TrainedArm
from tests.evaluation.report.test_report import PIT, STANDARD, corpus, report

HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=alert(1)>"
VOID = {"meta", "path", "use", "br", "img", "link", "rect", "circle", "line"}


class Page(HTMLParser):
    """Tags, ids, texts by section; fails on what does not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "svg":
            self.images.append(given)
        self.outside += [
            value
            for name, value in attrs
            if name in ("src", "srcset", "data") or (name.endswith("href") and not (value or "").startswith("#"))
        ]  # type: ignore[misc]
        self.outside += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def made() -> dict[str, Any]:
    return report(["base", "standard", "mix", "pit"], {"base": set(), "standard": STANDARD, "pit": PIT})


def exam() -> Exam:
    return build_exam(corpus(), ExamConfig(), 0)


def stage(label: str, parent: str | None, rate: float) -> dict[str, Any]:
    curve = [{"step": s, "loss": 4.0 / (s + 1), "grad_norm": 1.0, "rate": rate, "tokens": 10} for s in range(4)]
    return {"label": label, "parent": parent, "plan_hash": f"hash of {label}", "rate": rate, "epochs": 1, "steps": 4, "tokens": 40, "seconds": 2.0, "loss": 1.0, "curve": curve}  # fmt: skip


def trained(made: dict[str, Any]) -> dict[str, Any]:
    stages = {
        "k0": stage("base 1/1: replay_documents", None, 1e-3),
        "k1": stage("standard 2/2: train_documents", "k0", 2e-3),
        "k2": stage("pit 2/3: train_questions", "k0", 3e-3),
        "k3": stage("pit 3/3: test_documents", "k2", 4e-3),
    }
    return {**made, "stages": stages, "curricula": {"base": ["k0"], "standard": ["k0", "k1"], "pit": ["k0", "k2", "k3"]}}


def test_one_file_that_nests_and_asks_for_nothing() -> None:
    text = page(trained(made()))
    seen = Page(text)
    assert text.startswith("<!doctype html>") and "script" not in seen.tags
    assert seen.outside == []
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert len(seen.ids) == len(set(seen.ids)), "ids of the drawings collide"
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
    assert seen.tags.count("h1") == 1 and seen.tags.count("section") >= 6
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_how_to_use_the_best_arm_stands_at_the_end() -> None:
    best = {**made(), "folder": "runs/a b"}
    best["arms"]["pit"] |= {"hf": "stages/k3/hf", "stage": "k3"}
    for text in (markdown(best), html.unescape(page(best))):
        assert "python -m evaluation ask 'runs/a b/stages/k3/hf' \"a question\"" in text and "vllm serve 'runs/a b/stages/k3/hf'" in text
    untrained = {**best, "differences": {**best["differences"], "best": "base"}}
    untrained["arms"]["base"] |= {"stage": None}
    assert "vllm serve" not in markdown(untrained) + page(untrained) + page(made())


def test_drawings_have_words_and_the_colours_of_the_page() -> None:
    seen = Page(page(trained(made())))
    assert len(seen.images) >= 8
    for image in seen.images:
        assert image["role"] == "img" and len(image["aria-label"] or "") > 30
    em = next(i["aria-label"] for i in seen.images if (i["aria-label"] or "").startswith("Exact match on the exam"))
    assert "pit 75.0 (50.0 to 100.0)" in (em or "")
    drawings = "".join(re.findall(r"<svg.*?</svg>", page(trained(made())), flags=re.S))
    assert not re.search(r"#[0-9a-f]{6}\b", drawings), "a fixed colour cannot be light and dark"
    assert "var(--arm-3)" in drawings and "var(--ink)" in drawings


def test_new_against_old_names_each_by_its_own_scores() -> None:
    two = trained(made())
    for name, old in (("base", 0.9), ("standard", 0.4), ("pit", 0.1)):
        two["arms"][name]["sets"]["replay"] = {"n": 4, "em": {"mean": old, "low": old, "high": old}}
    label = next(i["aria-label"] or "" for i in Page(page(two)).images if (i["aria-label"] or "").startswith("New against old"))
    assert "pit 75.0 and 10.0" in label and "base 0.0 and 90.0" in label
    assert not any((i["aria-label"] or "").startswith("New against old") for i in Page(page(trained(made()))).images), (
        "nothing older was asked"
    )


def test_beaten_is_who_is_passed_in_one_and_not_better_in_the_other() -> None:
    points = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.5, 0.4), "d": (0.1, 0.9), "same": (0.1, 0.9), "low": (0.0, 0.0)}
    assert not_beaten(points) == ["a", "b", "d", "same"]


def test_what_others_wrote_is_never_markup() -> None:
    hostile = trained(made())
    hostile["about"] = hostile["arms"]["mix"]["reason"] = HOSTILE
    hostile["baselines"]["commonest_train_answer"]["answer"] = HOSTILE
    hostile["only_right"] = {
        "pit": {"count": 1, "examples": [{"question": HOSTILE, "gold": [HOSTILE], "answers": {"pit": HOSTILE}, "document": HOSTILE}]}
    }
    for item in hostile["samples"]:
        item["question"], item["gold"] = HOSTILE, [HOSTILE]
        item["answers"] = {"pit": {"answer": HOSTILE, "em": 0.0}}
    seen = Page(page(hostile))
    assert "script" not in seen.tags and "img" not in seen.tags and seen.outside == []
    assert seen.text.count("<script>alert('x')</script>") >= 8  # shown as it was written
    with pytest.raises(AssertionError):  # the twin: this reader would see a script
        assert "script" not in Page(f"<p>{HOSTILE}</p>").tags


def test_words_mark_and_escape() -> None:
    assert words("`pit` is **not** <b>*right*</b>") == "<code>pit</code> is <strong>not</strong> &lt;b&gt;<em>right</em>&lt;/b&gt;"


def test_missing_arms_and_nothing_scored() -> None:
    text = Page(page(made())).text
    assert "mix is missing: no reply within 9 s" in " ".join(text.split())
    empty = Page(page(report(["standard", "pit"], {})))
    assert "No arm has a score yet." in " ".join(empty.text.split())
    assert "svg" not in empty.tags


def test_blocks_that_are_there_are_shown() -> None:
    full = trained(made())
    assert "Retrieval or training" not in page(full)
    em = {"mean": 0.5, "low": 0.4, "high": 0.6}
    full["arms"]["pit"]["modes"] = {"closed": {"em": em}, "retrieval": {"em": {**em, "mean": 0.625}, "hit_rate": 0.875}}
    full["arms"]["base"]["modes"] = {"open": {"em": em}}
    full["learning"] = {
        "pit": [
            {"stage": "k0", "steps": 0, "tokens": 0, "em": 0.1},
            {"stage": "k2", "steps": 4, "tokens": 40, "em": 0.2},
            {"stage": "k3", "steps": 8, "tokens": 80, "em": 0.75},
        ]
    }
    seen = Page(page(full))
    flat = " ".join(seen.text.split())
    assert "Retrieval or training" in flat and "87.5" in flat and "62.5" in flat
    drawn = next(i["aria-label"] or "" for i in seen.images if (i["aria-label"] or "").startswith("Exact match against steps"))
    assert "pit 75 at 8" in drawn


def test_curves_of_shared_stages_are_drawn_once() -> None:
    from evaluation.report.page import _curves

    full = trained(made())
    lines = _curves(full["stages"], full["curricula"], "loss")
    assert {name: len(pieces) for name, pieces in lines.items()} == {"base": 1, "standard": 1, "pit": 2}
    assert [x for x, _ in lines["pit"][1]] == [8, 9, 10, 11]  # after base (4 steps) and pit's first stage (4)


def test_thinning_keeps_both_ends() -> None:
    metrics = [{"step": s, "loss": 1.0, "other": 2} for s in range(1000)]
    kept = thinned(metrics, 10)
    assert len(kept) == 10 and kept[0]["step"] == 0 and kept[-1]["step"] == 999
    assert "other" not in kept[0]
    assert len(thinned(metrics[:7], 10)) == 7


def test_only_right_counts_questions_of_one_arm_alone() -> None:
    def rows(right: set[str]) -> list[dict[str, Any]]:
        return [{"question_id": f"q{i}", "doc_id": f"d{i // 2}", "answer": "x", "em": float(f"q{i}" in right)} for i in range(4)]

    found = only_right({"a": rows({"q0", "q1"}), "b": rows({"q1", "q2"}), "c": rows({"q1"})}, exam(), corpus(), 0)
    assert {name: block["count"] for name, block in found.items()} == {"a": 1, "b": 1, "c": 0}
    example = found["a"]["examples"][0]
    assert (example["question"], example["gold"]) == ("Where was 0?", ["Oslo"])
    assert example["document"] == "Born in Oslo, died in Rome."
    assert only_right({"a": rows({"q0"})}, exam(), corpus(), 0) == {}


def test_excerpt_stands_around_the_answer() -> None:
    text = "word " * 200 + "the answer is Oslo here " + "word " * 200
    cut = excerpt(text, ["oslo"], 100)
    assert "Oslo" in cut and len(cut) < 130 and cut.startswith("… ") and cut.endswith(" …")
    assert excerpt("Short text.", ["none"], 100) == "Short text."


def test_collect_reads_what_the_trainer_left(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "k0"
    folder.mkdir(parents=True)
    job = {"label": "pit 1/1: x", "parent": None, "plan_sha256": "abc", "stage": {"rate": 1e-3, "epochs": 2}}
    totals = {"steps": 2, "tokens": 20, "seconds": 1.0, "loss": 0.5}
    (folder / "manifest.json").write_text(json.dumps({"job": job, "totals": totals, "world_size": 2, "host": "secret-name"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": 1.0 - s / 2}) + "\n" for s in range(2)))
    arm = TrainedArm("pit", "/x", "w", None, False, {"hf": "x", "stages": ["k0", "gone"]})
    found = collect(tmp_path, [arm], {}, exam(), corpus(), 0)
    assert list(found["stages"]) == ["k0"] and found["curricula"] == {"pit": ["k0", "gone"]}
    assert found["stages"]["k0"]["plan_hash"] == "abc" and found["stages"]["k0"]["tokens"] == 20
    assert [line["loss"] for line in found["stages"]["k0"]["curve"]] == [1.0, 0.5]
    assert "secret-name" not in json.dumps(found)
    assert found["only_right"] == {}


def with_blocks() -> dict[str, Any]:
    """A report with planted findings in every optional block."""
    full = trained(made())
    em = {"mean": 0.5, "low": 0.4, "high": 0.6}
    letters = {"A": 0.0, "C": 1.0}
    printed = {"n": 4, "right": 2, "accuracy": em, "letters": letters, "clean": None, "gold": {"A": 1, "C": 2}, "minus_constant": em}
    full["choices"] = {
        "questions": 4,
        "leakage": {"count": 3, "share": 0.75},
        "arms": {"pit": {"closed": {"printed": printed}}},
        "missing": {"base": HOSTILE},
        "findings": ["`pit`, printed: its predictions collapse to one letter: 100.0 % are C."],
    }
    full["benchmarks"] = {
        "tasks": {"piqa acc": {"shots": 0, "arms": {"base": {**em, "n": 9}, "pit": {**em, "n": 9}}, "change": {"pit": {"mean": -0.1, "low": -0.2, "high": -0.01}}}},
        "missing": {"pit": {"ifeval": "not done within 9 s"}},
        "limit": 9,
        "lm_eval": "0.0",
    }  # fmt: skip
    full["lost"] = {"pit": {"known": 100, "lost": 80, "wrong_format": 70, "wrong_fact": 10}}
    full["merged"] = {
        "arms": {"pit": {"in_words": "standard + 0.5 × (tuned − base)", "of": "standard", "instruct": "tuned", "base": "base", "notes": [HOSTILE], "minus": {"standard": {"mean": 0.1, "low": 0.02, "high": 0.2}}}},
        "left_out": {"ties": "mergekit is not installed here"},
    }  # fmt: skip
    full["conversation"] = {"prompts": ["Hello?"], "arms": {"pit": {"ended": 0.25, "tokens": 7.0, "answers": [HOSTILE]}}, "missing": {}}
    return full


def test_planted_findings_are_said_by_the_page_and_by_markdown() -> None:
    seen = Page(page(with_blocks()))
    flat = " ".join(seen.text.split())
    assert "script" not in seen.tags and seen.outside == []
    for told in (markdown_blocks(with_blocks()).replace("`", ""), flat):
        assert "its predictions collapse to one letter: 100.0 % are C." in told
        assert "pit lost the format rather than the facts: 70 of 80 lost answers still hold the right one." in told
        assert "ifeval is missing: not done within 9 s" in told
        assert "50.0 (−10.0: −20 to −1)" in told
        assert "standard + 0.5 × (tuned − base)" in told and "10.0 (2 to 20)" in told
        assert "ties is left out: mergekit is not installed here." in told
        assert "Only the first 9 questions of each task" in told
        assert "Always giving one letter, as printed: A 33.3 % (1), C 66.7 % (2) of 3." in told
    assert "Hello?" in flat and "<script>" in flat
    fine = with_blocks()
    fine["lost"]["pit"] |= {"wrong_format": 10, "wrong_fact": 70}  # the twin
    assert "lost the format" not in markdown_blocks(fine)


def test_a_failed_benchmark_is_missing_and_not_zero() -> None:
    full = with_blocks()
    full["benchmarks"]["tasks"]["piqa acc"]["arms"].pop("base")
    table = next(line for line in markdown_blocks(full).splitlines() if line.startswith("| piqa acc"))
    assert table.split("|")[3].strip() == "missing"
    assert markdown_blocks(made()) == ""
