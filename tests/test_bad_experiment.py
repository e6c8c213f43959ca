"""Hostile and broken experiment files: one line with the place, quickly, before anything starts."""

import re
import time
from pathlib import Path

import pytest

from experiment import load_experiment
from experiment_yaml import ExperimentError
from tests.helpers.refusals import refusal

GOOD = "name: x\ndata: {bios: {train_people: 5}}\nmodel: {tiny: {}}\narms: {pit: {preset: pit}}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text, message",
    [
        (GOOD + BOMB, r":\d+: aliases make more than 100,000 values of it"),
        (GOOD + "about: &a [*a]\n", ":5: an alias inside what it stands for|:5: not YAML: found unconstructable recursive node"),
        (GOOD + "about: " + "[" * 5000, ": nested too deep|:5: not YAML"),
        (GOOD + "about: " + "{a: " * 5000, ": nested too deep|:5: not YAML"),
        (GOOD + "\tseed: 1\n", ":5: not YAML: found character '.t' that cannot start any token; indent with spaces, not tabs"),
        (GOOD + "name: y\n", ":5: name: given twice"),
        (GOOD + "seed: 1\nseed: 2\n", ":6: seed: given twice"),
        ("- name: x\n", ":1: an experiment is a mapping of keys to values"),
        ("just text\n", ":1: an experiment is a mapping of keys to values"),
        ("", ":1: an experiment is a mapping of keys to values"),
        (GOOD + "about: !!python/object/apply:os.system [touch marker]\n", ":5: not YAML: could not determine a constructor for the tag"),
        (GOOD + "? [a, b]\n: 1\n", ":5: not YAML: found unhashable key"),
        (GOOD + "about: 2026-99-99\n", ":5: not YAML: month must be in 1..12|:1: not YAML: month must be"),
        (GOOD + "about: \x00\n", ":5: not YAML: unacceptable character #x0000"),
        (GOOD + "zed: 1\n", ":5: zed: unknown key; did you mean seed"),
        (GOOD + "trainer: {zero_stage: 9}\n", ":5: trainer.zero_stage: input should be 0, 1, 2 or 3, not 9"),
        (GOOD + "trainer: {zero_stage: " + "9" * 3000 + "}\n", ":5: trainer.zero_stage: unable to parse input string as an integer, exceeded maximum size, not 9{70,79}…"),
        (GOOD.replace("preset: pit", "preset: pit, stages: [{mix: {train_documents: 1}, epochs: 1, batch_items: 1, rate: 1}]"), "give either a preset or stages"),
        (GOOD.replace("{bios: {train_people: 5}}", "{bios: {}, sources: [{path: x, split: train, holds: documents}]}"), ":2: data: give either data.sources or data.bios"),
        (GOOD.replace("model: {tiny: {}}", "model: {tiny: {}, name: y}"), ":3: model: give either model.name or model.tiny"),
    ],
    ids=lambda value: value[-30:].strip(),
)  # fmt: skip
def test_one_line_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    start = time.process_time()
    said = refusal(lambda: load_experiment(tmp_path / "x.yaml"), ExperimentError)
    assert re.search(message, said) and len(said) < 600 and said.startswith(str(tmp_path / "x.yaml:"))
    assert time.process_time() - start < 5


def test_the_good_one_loads_with_aliases(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD.replace("{pit: {preset: pit}}", "{pit: &p {preset: pit}, again: *p}"))
    assert set(load_experiment(tmp_path / "x.yaml").arms) == {"pit", "again"}


@pytest.mark.parametrize("override", ["seed=[", "seed=*a", "seed=" + "[" * 5000, "=1", "a..b=1", "about=\x00"])
def test_overrides(tmp_path: Path, override: str) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    assert refusal(lambda: load_experiment(tmp_path / "x.yaml", [override]), ExperimentError).startswith("override ")
