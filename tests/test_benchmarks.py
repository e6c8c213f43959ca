"""The benchmarks' own command, and what is counted at full size, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.result_file import FOLDER
from benchmarks.table import ONE_GPU, TWO_CORES, modules, row, write_page
from tests.conftest import ROOT
from tests.helpers.groups import Groups


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_every_row_has_a_module_and_a_goal() -> None:
    known = modules()
    assert set(known) >= {*TWO_CORES, *ONE_GPU}
    for name in TWO_CORES + ONE_GPU:
        line = row(name, known[name])
        assert line.goal and line.verdict in {"holds", "missed", "–"}, name


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    doc = modules()["pack_time"]
    assert row("pack_time", doc, tmp_path).measured == "not measured"  # no file at all
    (tmp_path / "pack_time.json").write_text(json.dumps({"figures": {}, "goal": {"faster": ">= 10"}, "holds": None}))
    line = row("pack_time", doc, tmp_path)
    assert (line.measured, line.goal, line.verdict) == ("not measured", "faster >= 10", "–")
    (tmp_path / "pack_time.json").write_text(json.dumps({"figures": {"faster": 3.0}, "goal": {"faster": ">= 10"}, "holds": False}))
    line = row("pack_time", doc, tmp_path)
    assert (line.measured, line.verdict) == ("faster 3", "missed")


def test_the_page_holds_what_the_results_say(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs/performance.md").read_text())
    write_page(page)
    assert page.read_text() == (ROOT / "docs/performance.md").read_text(), "python -m benchmarks --docs"


def test_results_name_where_they_come_from() -> None:
    for path in FOLDER.glob("gpu_*.json"):
        result = json.loads(path.read_text())
        assert result["holds"] is None or result["figures"]["device"], f"{path.name} has figures and names no device"


def test_unknown_name_is_bad_input() -> None:
    done = run("benchmarks", "nope")
    assert done.returncode == 2 and "no such benchmark; known: " in done.stderr


def test_ranks_read_and_write_their_share(groups: Groups, tmp_path: Path) -> None:
    """benchmarks.scale_load and .scale_export on two ranks: the goals of 64 hold but for what headers weigh in a small model."""
    groups.call("tests.helpers.scale_counts", tmp_path, 2)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        load, leave = found["load"], found["leave"]
        assert 1 <= load["bytes"] / load["share"] <= 1.01 and load["openings"] <= 2
        assert leave["read"] == 0 and leave["written"] <= 1.1 * load["share"] / 2 + leave["index"] + 8192


def test_nothing_of_a_stage_outlives_it(groups: Groups, tmp_path: Path) -> None:
    groups.call("tests.helpers.scale_counts", tmp_path, 1)
    for found in json.loads((tmp_path / "0.json").read_text()).values():
        assert found["alive"] == 0 and found["held"] > 20, found


def test_steps_are_measured_and_counted_on_a_tiny_model(groups: Groups, tmp_path: Path) -> None:
    """This build's part of real_step and step_shape; the whole commands are among the slow tests."""
    found = json.loads((groups.call("tests.numerics.ranks.benchmark_steps", tmp_path, 1) / "found.json").read_text())
    assert len(set(found["rows"])) == 2, "rows differ"
    ours, other = found["losses"]["ours"], found["losses"]["ours_by_deepspeed"]
    assert ours == pytest.approx(other, rel=1e-5) and ours[0] != ours[1]  # fp32 sums in another order
    assert found["losses"]["torch"] != pytest.approx(ours, rel=1e-5)  # its items see each other
    static, exact = found["counts"]["True"], found["counts"]["False"]
    assert static["attention_shapes"] <= 6 and exact["attention_shapes"] == exact["micro_steps"]
    assert static["operations_a_micro_step"] > 100 and 0.8 < found["fill"] <= 1
    assert 4 <= found["loss"]["most_bytes_a_logit"] < 8  # one tensor of logits in fp32, and its copy in bf16; two would be 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real_step", "step_shape"])
def test_steps_beside_the_older_build(name: str) -> None:
    done = run(f"benchmarks.{name}", "--tiny")
    assert done.returncode == 0 and "before" in done.stderr, done.stderr[-2000:]
