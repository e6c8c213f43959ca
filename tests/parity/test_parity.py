"""A choice of the parity matrix in which all pairs occur has no cell that is silently different; and what is spoilt is found. `make parity` runs all of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.groups import Groups
from tests.parity import twins
from tests.parity.cells import Cell, covering, pairs_of, stages, whole_matrix
from tests.parity.runner import run_cells
from tests.parity.table import rows as table_rows
from tests.parity.table import text
from tests.parity.verdict import against_other_stages

pytestmark = pytest.mark.timeout(900)  # of the fixture that runs all cells, on a machine that others use too
FACTORS = ("family", "trained", "rows", "zero", "precision", "workers")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def lines(groups: Groups, out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    run_cells(groups, out, list(dict.fromkeys([*covering(), *stages(), *(cell for cell, *_ in twins.TWINS.values())])), found.append)
    return against_other_stages(found)


def name_of(line: dict[str, Any]) -> str:
    return Cell(**{factor: line[factor] for factor in FACTORS}).name


def test_no_cell_is_different(lines: list[dict[str, Any]]) -> None:
    bad = [f"{name_of(line)}: {line['verdict']}: {line['why']}" for line in lines if line["verdict"] not in ("equal", "bounded", "refused")]
    assert not bad, "\n".join(bad)
    assert sum(line["verdict"] == "refused" for line in lines) < len(lines) / 4  # a refusal shows nothing


def test_all_pairs_occur() -> None:
    chosen = covering()
    seen = set().union(*map(pairs_of, chosen))
    assert seen == set().union(*map(pairs_of, whole_matrix())) and len(set(chosen)) == len(chosen) < len(whole_matrix()) / 50


@pytest.fixture(scope="module")
def spoilt(lines: list[dict[str, Any]], groups: Groups, out: Path) -> dict[str, Any]:
    return json.loads((groups.call("tests.parity.twins", out, 1) / "twins.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", list(twins.TWINS))
def test_what_is_spoilt_is_found(spoilt: dict[str, Any], lines: list[dict[str, Any]], name: str) -> None:
    cell, *_, told = twins.TWINS[name]
    assert spoilt[name]["verdict"] == "DIFFERENT" and told in spoilt[name]["why"], spoilt[name]
    assert all(line["verdict"] != "DIFFERENT" for line in lines if name_of(line) == cell.name)


def test_the_last_bit_of_another_stage_is_found() -> None:
    told = {"attention": "sdpa", "one_item": False, "losses": [5.0], "gradients": [{"a": 1, "b": 2}]}
    like = {"family": "llama", "trained": "all", "rows": "short", "precision": "bf16", "workers": 1, "verdict": "bounded", "why": ""}
    lines = [{**like, "zero": stage, "told": dict(told)} for stage in (1, 2, 3)]
    assert {line["verdict"] for line in against_other_stages(lines)} == {"bounded"}
    for changed, why in (
        ({"losses": [5.000000000000001]}, "first loss"),
        ({"gradients": [{"a": 1}]}, "no gradient"),
        ({"one_item": True}, "packed"),
    ):
        verdicts = against_other_stages([*lines[:2], {**lines[2], "told": {**told, **changed}}])
        assert [line["verdict"] for line in verdicts] == ["bounded", "bounded", "DIFFERENT"] and why in verdicts[2]["why"]
    rounded = against_other_stages([lines[0], {**lines[2], "told": {**told, "gradients": [{"a": 1, "b": 3}]}}])[1]
    assert rounded["verdict"] == "bounded" and not rounded["told"]["bits"]


def test_the_table_says_what_is_bad_and_what_is_refused(lines: list[dict[str, Any]]) -> None:
    bad = [{**lines[-1], "verdict": "DIFFERENT"}, *lines]
    about = {"date": "2026-01-01", "commit": "abc", "cpus": 2, "minutes": 1}
    made = text({"figures": table_rows(bad), "cells": len(bad), "verdicts": {"DIFFERENT": 1}, "environment": about})
    assert "**DIFFERENT: 1 of " in made and "1. trainer.zero_stage: ZeRO 0 gives no access" in made
