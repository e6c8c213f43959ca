"""What a run takes beside its optimiser steps, at a storage's rate; and what is recommended where cost counts too."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cost.chips import CHIPS, make_hardware
from cluster.cost.memory import SetUp
from cluster.cost.model_shape import ModelShape
from cluster.cost.phases import FILE, Asked, exam_s, phases, storage_rate, with_storage
from cluster.cost.speed import compute_s_per_token, reading_s
from cluster.plan import plan_experiment, question_of
from cluster.setups import advise, offer
from data.ground.durable import write_json
from data.ground.engines import engines_at_once, gpus_of_engine
from experiment import load_experiment
from tests.conftest import ROOT

LLAMA_70B = ModelShape(8192, 80, 28672, 64, 8, 128, 32000)
H100S = make_hardware(64, CHIPS["H100"])


def test_what_a_stage_moves_is_read_and_written_once() -> None:
    """4 bytes a weight read, 4 and 2 written, at 5 GB/s in all; checkpoints cost their copy into host memory and nothing else."""
    size = LLAMA_70B.parameters
    two = phases(LLAMA_70B, SetUp(3, 4096, True), H100S, [100.0, 100.0], 600.0, Asked())
    assert (two.load, two.saving, two.export) == pytest.approx((2 * 4 * size / 5e9, 2 * 4 * size / 5e9, 2 * 2 * size / 5e9))
    assert two.training == 200 and two.exam == 0 and two.total == pytest.approx(two.beside + 200)
    long = phases(LLAMA_70B, SetUp(3, 4096, True), H100S, [6000.0], 600.0, Asked())
    assert long.saving == pytest.approx(4 * size / 5e9 + 10 * 12 * size / 64 / 20e9)
    slow = phases(LLAMA_70B, SetUp(3, 4096, True), replace(H100S, storage_bytes_per_s=5e8), [6000.0], 600.0, Asked())
    assert slow.saving == pytest.approx(4 * size / 5e8 + 3 * 12 * size / 64 / 20e9), "a save takes 1,655 s: the interval is as long"


def test_what_is_read_before_a_stage_is_a_phase() -> None:
    """Forward alone: a third of training as many tokens, in fp32 on an H100 five times as much, for its ordinary units have a fifteenth of the peak. Weights are
    read once more, for an engine of its own."""
    size, one = LLAMA_70B.parameters, make_hardware(1, CHIPS["H100"])
    with_reading = phases(LLAMA_70B, SetUp(3, 4096, True), H100S, [100.0], None, Asked(), reading=[7.0])
    assert with_reading.teaching == pytest.approx(7 + 4 * size / 5e9 + 15) and with_reading.total == pytest.approx(
        phases(LLAMA_70B, SetUp(3, 4096, True), H100S, [100.0], None, Asked()).total + with_reading.teaching
    )
    trains = 1e6 * compute_s_per_token(LLAMA_70B, 500.0, one, recompute=False)
    assert reading_s(LLAMA_70B, 2, 4096, 10**6, 500.0, one) == pytest.approx(trains / 3)
    assert 4 * trains < reading_s(LLAMA_70B, 2, 4096, 10**6, 500.0, one.in_precision(fp32=True)) < 6 * trains
    assert reading_s(LLAMA_70B, 3, 4096, 10**6, 500.0, H100S) > reading_s(LLAMA_70B, 2, 4096, 10**6, 500.0, H100S), "weights are gathered"
    few = [reading_s(LLAMA_70B, 3, 4096, 1000, 500.0, H100S, passes) for passes in (1, 33)]
    assert few[1] > 20 * few[0], "own answers: once for each token at least, however few rows"


def test_few_processes_cannot_use_all_of_the_storage() -> None:
    assert storage_rate(make_hardware(1, CHIPS["H100"]), 1) == 1e9 and storage_rate(H100S, 64) == 5e9


def test_70b_beside_its_training() -> None:
    """At most three minutes a stage at 5 GB/s; the twin: at 1 GB/s it is far more."""
    experiment = load_experiment(ROOT / "experiments" / "wiki2023_llama2_70b.yaml", [])
    question = question_of(experiment, H100S)
    stages = len(question.workload.stages)
    assert question.asked.models == 7 and question.asked.questions == 2 * 1743 + 500
    for rate, most in ((5.0, 180.0), (1.0, None)):
        took = offer(question, question.file, with_storage(H100S, Path("nowhere"), rate)).phases
        assert took is not None and took.beside / stages <= (most or took.beside)
        assert most or took.beside / stages > 600


def test_a_measured_rate_is_used(tmp_path: Path) -> None:
    assert with_storage(H100S, tmp_path) == H100S and "assumed" in H100S.storage_told
    write_json(tmp_path / FILE, {"storage_bytes_per_s": 2e9, "process_bytes_per_s": 3e8})
    measured = with_storage(H100S, tmp_path)
    assert (storage_rate(measured, 64), storage_rate(measured, 1), measured.storage_told) == (2e9, 3e8, "as preflight measured")
    assert storage_rate(with_storage(H100S, tmp_path, 7.0), 64) == 7e9


def test_seven_models_do_not_queue_behind_one_engine() -> None:
    """70B needs 4 GPUs an engine: 16 engines find room on 64, and seven models take about as long as one; on 4 GPUs they queue."""
    asked = Asked(7, 2000)
    many, one = exam_s(LLAMA_70B, H100S, asked), exam_s(LLAMA_70B, H100S, Asked(1, 2000))
    queue = exam_s(LLAMA_70B, H100S.with_gpus(4), asked)
    assert many < one + 7 * 2 * LLAMA_70B.parameters / 5e9 and queue > 1.5 * many


@pytest.mark.parametrize(
    "weights, memory, per_node, gpus",
    [(1e9, 85e9, 8, 1), (138e9, 85e9, 8, 4), (138e9, 150e9, 8, 2), (400e9, 85e9, 8, 8), (138e9, 85e9, 2, 2)],
)
def test_gpus_of_an_engine(weights: float, memory: float, per_node: int, gpus: int) -> None:
    assert gpus_of_engine(weights, memory, per_node) == gpus


@pytest.mark.parametrize(
    "gpus, nodes, models, engines", [(4, [8] * 8, 7, 7), (4, [8] * 8, 70, 16), (4, [2, 2], 3, 1), (0, [], 3, 1), (1, [2, 1], 9, 3)]
)
def test_engines_at_once(gpus: int, nodes: list[int], models: int, engines: int) -> None:
    assert engines_at_once(gpus, nodes, models) == engines


def test_fewer_gpus_where_more_save_little() -> None:
    """7B in the paper's steps on 8: half of them or fewer take minutes more and cost a third less. Large steps use all."""
    experiment = load_experiment(ROOT / "experiments" / "wiki2023_llama2_7b.yaml", [])
    advice = plan_experiment(experiment, make_hardware(8, CHIPS["A100-80G"]))
    chosen, most = advice.recommended, advice.by_count[0]
    assert chosen is not None and chosen.hardware.num_gpus < 8
    assert (chosen.cost(1.0) or 9) < 0.75 * (most.cost(1.0) or 0) and (chosen.hours or 9) < (most.hours or 0) + 0.25
    for one in advice.by_count:
        assert (chosen.hours or 0) * (chosen.cost(1.0) or 0) <= (one.hours or 0) * (one.cost(1.0) or 0)


def test_the_phases_are_in_json_and_in_words(run_command: Any) -> None:
    command = ("cluster", "plan", "experiments/wiki2023_llama2_70b.yaml", "--gpus", "64xH100", "--price", "2", "--storage", "2.5")
    report = json.loads(run_command(*command, "--json").stdout)
    told = report["recommended"]["phases"]
    assert list(told["hours"]) == list(told["cost"]) == ["start", "load", "teaching", "training", "saving", "export", "exam"]
    assert sum(told["hours"].values()) == pytest.approx(report["recommended"]["hours"], abs=1e-3) and told["storage_bytes_per_s"] == 2.5e9
    text = run_command(*command).stdout
    assert "a stage: all but training and exam; GB/s: of the storage (as told)" in text and " 2.5 " in text and "recommended: " in text


def test_advice_names_what_fewer_gpus_save() -> None:
    from cluster.plan_text import in_lines

    question = question_of(load_experiment(ROOT / "experiments" / "wiki2023_llama2_70b.yaml", []), H100S)
    lines = "\n".join(in_lines("x", question, H100S, advise(question, H100S), 2.0))
    assert "not 64: it is done" in lines and "less" in lines
