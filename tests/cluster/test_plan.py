"""The planner as a user meets it: what fits, what does not, what is recommended, and the command."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.cost.chips import CHIPS, GIB, Hardware, make_hardware
from cluster.cost.memory import SetUp, trained_share
from cluster.cost.model_shape import shape_of
from cluster.fallback import fitting
from cluster.measure import FILE, calibrated, calibration_of
from cluster.plan import estimate, plan_experiment, question_of, refuse_hopeless
from cluster.setups import USABLE, Advice, Offer, Question, advise, offer, set_ups
from console import UserError
from data.planning.plan_report import packing_fill
from experiment import Experiment, load_experiment
from tests.conftest import ROOT
from tests.helpers.experiments import tiny

# Items of 500 tokens; a step is 16,384 tokens on each of 64 GPUs.
LARGE_STEPS = [
    "data.counts={train_documents: 20000}",
    "data.tokens_each={train_documents: 500}",
    "arms={only: {stages: [{mix: {train_documents: 1}, steps: 80, batch_tokens: 1048576, rate: 1.0e-5}]}}",
    "exam.compare_to=only",
]


def experiment(size: str, *overrides: str) -> Experiment:
    return load_experiment(ROOT / "experiments" / f"wiki2023_llama2_{size}.yaml", list(overrides))


def find(advice: Advice, **wanted: Any) -> Offer:
    (found,) = [
        one
        for one in advice.offers
        if all(getattr(one.set_up, k) == v for k, v in wanted.items()) and not (one.from_file and len(wanted) < 4)
    ] or [None]  # type: ignore[list-item]
    return found


# ── the figures that were promised ─────────────────────────────────────────────────────────────────────────────────────────────


def test_70b_on_64_h100() -> None:
    """At 4k tokens per GPU and micro-step or more: memory within 10 % of ZeRO's 18/n bytes plus overheads that are listed; 950 to 1,050
    tokens/s/GPU modelled (published: 1,039 for a model of 65 billion), of rows that are full, as those were: the trainer pads these."""
    hardware = make_hardware(64, CHIPS["H100"])
    advice = plan_experiment(experiment("70b", *LARGE_STEPS, "trainer.shapes=exact"), hardware)
    chosen = advice.recommended
    assert chosen is not None and chosen.hardware.num_gpus == 64 and chosen.set_up.zero_stage == 3 and chosen.fits
    assert chosen.tokens_per_micro_step >= 4096 > 4 * chosen.break_even / 1.1
    assert chosen.tokens_per_s is not None and 950 <= chosen.tokens_per_s / 64 <= 1050
    size = 68_976_648_192
    overheads = chosen.gpu.total - chosen.gpu.kept
    assert chosen.gpu.kept == pytest.approx(18 * size / 64, rel=0.1) and chosen.gpu.kept == pytest.approx(16 * size / 64 + 2 * size / 64)
    listed = chosen.gpu.activations + chosen.gpu.logits + chosen.gpu.buffers
    assert overheads == pytest.approx(listed * 1.05 + 2 * GIB, rel=0.01)
    assert chosen.gpu.total < USABLE * 79.1 * GIB


def test_7b_on_one_a100() -> None:
    """Fits: states in host memory, given 512 GiB of it. Does not: fp32 states on the card (18 bytes a weight), whatever the rest."""
    hardware = make_hardware(1, CHIPS["A100-80G"], host_gib=512)
    advice = plan_experiment(experiment("7b"), hardware)
    on_card = [one for one in advice.offers if not one.set_up.offload and not one.set_up.adapter and one.set_up.available]
    assert on_card and not any(one.fits for one in on_card)
    for one in on_card:
        assert "GPU memory" in one.problems[0] and "GiB missing" in one.problems[0]
        assert one.gpu.total > 18 * 6_738_415_616
    assert any(one.fits for one in advice.offers if one.set_up.offload)
    assert advice.recommended is not None and advice.recommended.set_up.offload
    lora = next(one for one in advice.offers if one.set_up.adapter)
    assert lora.fits and lora.can_be_chosen and lora is not advice.recommended  # another method is the user's choice


def test_7b_on_one_a100_in_a_small_machine_is_refused() -> None:
    """The save peak: states and their kept copy are both in host memory."""
    with pytest.raises(UserError, match=r"no set-up fits 1×A100-80G: .* lacks .*GiB missing"):
        plan_experiment(experiment("7b"), make_hardware(1, CHIPS["A100-80G"], host_gib=144))


def test_70b_with_fp32_states_on_8_a100_is_refused_with_the_number() -> None:
    hardware = make_hardware(8, CHIPS["A100-80G"])
    question = question_of(experiment("70b"), hardware)
    advice = advise(question, hardware)
    assert advice.recommended is None
    on_card = min(
        (o for o in advice.offers if o.set_up.available and not o.set_up.offload and not o.set_up.adapter), key=lambda o: o.gpu.total
    )
    missing = (on_card.gpu.total - USABLE * 79.1 * GIB) / GIB
    assert on_card.problems[0].startswith(f"GPU memory: {missing:,.1f} GiB missing") and missing > 60
    with pytest.raises(UserError, match=r"no set-up fits 8×A100-80G.*GiB missing \(needs"):
        refuse_hopeless(advice, hardware)


def test_lora_is_planned_as_the_file_says() -> None:
    """One stage without an adapter needs the memory of all weights; a rank of 16 is half a per cent of 7B."""
    hardware = make_hardware(1, CHIPS["A100-80G"])
    lora = plan_experiment(experiment("7b", "trainer.adapter.r=16"), hardware).recommended
    assert lora is not None and lora.set_up.adapter == 16 and not lora.set_up.offload
    shape = shape_of(experiment("7b").model)
    assert trained_share(shape, lora.set_up) == pytest.approx(39_976_960 / 6_738_415_616)  # as peft counts it
    assert "trainer.adapter" not in " ".join(lora.overrides())
    arm = next(iter(experiment("7b").arms))
    mixed = question_of(experiment("7b", "trainer.adapter.r=16", f"arms.{arm}.adapter=full"), hardware)
    assert mixed.file.adapter == 0
    offered = next(one for one in advise(mixed, hardware).offers if one.set_up.adapter)
    assert experiment("7b", *offered.overrides()).trainer.adapter is not None


def test_where_only_lora_fits_the_refusal_says_so() -> None:
    with pytest.raises(
        UserError, match=r"no set-up fits 1×A100-80G: .*GiB missing.*; .*LoRA of rank 16.* would fit: .*trainer\.adapter\.r=16"
    ):
        plan_experiment(experiment("7b"), make_hardware(1, CHIPS["A100-80G"], host_gib=200))


def test_7b_on_eight_cards_fits_with_fp32_states() -> None:
    advice = plan_experiment(experiment("7b"), make_hardware(8, CHIPS["A100-80G"]))
    assert advice.recommended is not None and not advice.recommended.set_up.offload


# ── recommendations ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fewer_gpus_where_more_would_idle() -> None:
    """The paper's batch of 256 items is a few hundred tokens a GPU on 64: below break-even, so fewer are recommended; large steps use all."""
    hardware = make_hardware(64, CHIPS["H100"])
    small = plan_experiment(experiment("70b"), hardware)
    assert small.by_count[0].hardware.num_gpus == 64 and small.by_count[0].tokens_per_micro_step < small.by_count[0].break_even
    assert small.recommended is not None and small.recommended.hardware.num_gpus < 64
    assert plan_experiment(experiment("70b", *LARGE_STEPS), hardware).recommended.hardware.num_gpus == 64  # type: ignore[union-attr]


def test_recommended_can_be_set() -> None:
    """The overrides are the trainer's own settings; nothing that it cannot do is recommended, nor plain bf16 states."""
    chosen = plan_experiment(experiment("7b"), make_hardware(8, CHIPS["A100-80G"])).recommended
    assert chosen is not None and chosen.set_up.available
    again = experiment("7b", *chosen.overrides())
    assert again.trainer.num_workers == chosen.hardware.num_gpus and again.trainer.zero_stage == chosen.set_up.zero_stage
    assert not any(one.set_up.compensated and one.can_be_chosen for one in advise(*asked()).offers)


def asked() -> tuple[Question, Hardware]:
    hardware = make_hardware(8, CHIPS["H100"])
    return question_of(experiment("7b"), hardware), hardware


def test_disk_counts() -> None:
    question, hardware = asked()
    fits = offer(question, SetUp(3, 4096, True), hardware)
    assert fits.fits
    small = make_hardware(8, CHIPS["H100"], disk_gib=fits.disk.peak / GIB - 10)
    assert offer(question, SetUp(3, 4096, True), small).problems == [
        f"disk: 10.0 GiB missing (needs {fits.disk.peak / GIB:,.1f}, has {fits.disk.peak / GIB - 10:,.1f})"
    ]


def test_estimate_for_the_search() -> None:
    found = estimate(experiment("7b"), "8xH100", price=2.0)
    assert found.hours and found.gpu_hours == pytest.approx(found.hours * found.num_gpus)
    assert found.cost == pytest.approx(2.0 * found.gpu_hours)


def test_sizes_come_from_the_data_where_they_are(shared_data: Path) -> None:
    read = question_of(experiment("7b", f"data.root={shared_data / 'wiki2023_film'}"), make_hardware(8, CHIPS["H100"])).workload
    declared = question_of(experiment("7b"), make_hardware(8, CHIPS["H100"])).workload
    assert "records read" in read.origin and "declared" in declared.origin
    assert read.steps == declared.steps and declared.tokens == pytest.approx(read.tokens, rel=0.05)


def test_unknown_lengths_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.tokens_each: .*data\.root"):
        question_of(experiment("7b", "data.tokens_each={}"), make_hardware(8, CHIPS["H100"]))


# ── models and machines ────────────────────────────────────────────────────────────────────────────────────────────────────────


# ── measured speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_measured_speed_scales_the_plan(tmp_path: Path) -> None:
    """Steps that took twice as long as modelled double the hours of training, on this kind of GPU only."""
    question, hardware = asked()
    work = question.workload.stages[0]
    exact = offer(question, question.file, hardware)
    step_s = 2 * _modelled_step(question, hardware)
    rows = [{"step_s": step_s, "tokens": work.tokens / work.steps, "memory_gib": 30.0}]
    found = calibration_of(rows, question, work, hardware)
    assert found.speed == pytest.approx(0.5, rel=1e-6)
    (tmp_path / FILE).write_text(json.dumps(found.__dict__))
    slower = calibrated(hardware, tmp_path)
    again = offer(question, question.file, slower)
    assert again.tokens_per_s == pytest.approx(exact.tokens_per_s / 2)  # type: ignore[operator]
    other = make_hardware(8, CHIPS["A100-80G"])
    assert calibrated(other, tmp_path) == other


def _modelled_step(question: Question, hardware: Hardware) -> float:
    from cluster.cost.speed import step_time

    work = question.workload.stages[0]
    return step_time(question.shape, question.file, work.load(8, question.file.row_tokens, static=True), hardware).total


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

HEAVY = "import sys; from cluster.__main__ import main; main(sys.argv[1:]); print(sorted(sys.modules.keys() & {'torch', 'ray', 'vllm', 'deepspeed'}))"


def test_the_command_needs_neither_torch_nor_ray() -> None:
    import subprocess
    import sys

    command = [sys.executable, "-c", HEAVY, "plan", "experiments/wiki2023_llama2_7b.yaml", "--gpus", "4xA100-40G", "--price", "2"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lines, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    text = "\n".join(lines)
    for word in ("modelled", "recommended: ", "trainer.zero_stage=", "does not fit, ", "not in this version", "cost"):
        assert word in text, word
    assert max(map(len, lines)) <= 80


def test_the_command_as_json(run_command) -> None:  # type: ignore[no-untyped-def]
    done = run_command("cluster", "plan", "experiments/wiki2023_llama2_7b.yaml", "--json", "trainer.row_tokens=8192", "--gpus", "8xH100")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["modelled"] is True and report["recommended"]["fits"] and report["parameters"] == 6_738_415_616
    assert any("rows of 8,192" in one["set_up"] for one in report["set_ups"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["experiments/wiki2023_llama2_70b.yaml", "--gpus", "8xA100"], "error: no set-up fits 8×A100-80G"),
        (["experiments/wiki2023_llama2_7b.yaml", "--gpus", "8xB9000"], "error: --gpus 8xB9000: nothing is known of B9000"),
        (["experiments/perpetual_mamba.yaml", "--gpus", "1xH100", "data.tokens_each={train_documents: 1}"], "error: "),
        (["experiments/nowhere.yaml"], "error: experiments/nowhere.yaml: cannot be read"),
    ],
)
def test_what_the_command_refuses(run_command, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    done = run_command("cluster", "plan", *arguments)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(message), done.stderr
    assert "Traceback" not in done.stderr


# ── one machine without a cluster ──────────────────────────────────────────────────────────────────────────────────────────────


def test_one_card_takes_what_fits_and_says_why() -> None:
    """7B on one A100 80 GB: the file's fp32 states do not fit; states in host memory do. Batches and weights stay what they were."""
    hardware = make_hardware(1, CHIPS["A100-80G"], host_gib=512)
    file = experiment("7b")
    trainer, line = fitting(file.trainer, question_of(file, hardware), hardware)
    assert trainer.offload_optimizer and trainer.num_workers == 1 and not file.trainer.offload_optimizer
    assert "does not fit (GPU memory: " in line and "GiB missing" in line and "instead ZeRO-" in line and "tokens" in line
    same = {"num_workers", "zero_stage", "row_tokens", "gradient_checkpointing", "offload_optimizer"}
    assert trainer.model_dump(exclude=same) == file.trainer.model_dump(exclude=same)


def test_eight_cards_train_as_the_file_says() -> None:
    hardware = make_hardware(8, CHIPS["A100-80G"])
    file = experiment("7b")
    trainer, line = fitting(file.trainer, question_of(file, hardware), hardware)
    assert trainer is file.trainer and "does not fit" not in line and "GiB of a GPU" in line


def test_one_card_that_nothing_fits_refuses() -> None:
    hardware = make_hardware(1, CHIPS["A100-40G"])
    file = experiment("70b")
    with pytest.raises(UserError, match=r"no set-up fits 1×A100-40G.*GiB missing"):
        fitting(file.trainer, question_of(file, hardware), hardware)


def test_rows_are_never_shorter_than_items() -> None:
    """A shorter row would cut documents that the file leaves whole: other weights."""
    hardware = make_hardware(8, CHIPS["A100-80G"])
    question = question_of(experiment("7b", "data.tokens_each.train_documents=3000"), hardware)
    assert min(one.row_tokens for one in set_ups(question, hardware)) == 4096


SMALL = (
    tiny("small", 0, 30, 4)
    + """\
arms:
  only: {{stages: [{{mix: {{train_documents: 1}}, epochs: 20, batch_items: 10, rate: 3.0e-3}}]}}
trainer: {{row_tokens: 256}}
exam: {{compare_to: only}}
"""
)


@pytest.mark.slow
def test_measure_runs_the_real_engine(run_command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """On CPUs hours are not known before, and known after; the scratch run leaves nothing behind."""
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(runs=tmp_path / "runs"))
    before = json.loads(run_command("cluster", "plan", str(file), "--json").stdout)
    assert before["recommended"]["hours"] is None
    done = run_command("cluster", "plan", str(file), "--measure", "--json", timeout_s=280)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert after["recommended"]["hours"] > 0 and "measured: " in done.stderr
    assert [path.name for path in (tmp_path / "runs" / "small").iterdir()] == [FILE]


# ── chips that people own ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_more_ranks_than_work_answer_at_once() -> None:
    """A step of so few items is packed for as many ranks as have any, and the others counted: the same load, in milliseconds."""
    question, _ = asked()
    work = question.workload.stages[0]
    most = max(work.plan.starts[1:] - work.plan.starts[:-1])
    start = time.process_time()
    huge = [offer(question, question.file, make_hardware(count, CHIPS["H100"])) for count in (4096, 16384)]
    assert time.process_time() - start < 1 and all(one.seconds for one in huge)
    lengths, plan = work.lengths, work.plan
    exact, twice = (packing_fill(plan, lengths, int(most) * n, question.file.row_tokens, 8) for n in (1, 2))
    assert twice["busiest"] == pytest.approx(2 * exact["busiest"], abs=2e-3) and exact["micro_steps"] == 1  # both are rounded to 3 digits


@pytest.mark.parametrize("text", ["many", "12", "-1"])
def test_an_object_store_that_cannot_be(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.connect import _object_store_mb

    assert _object_store_mb() >= 75
    monkeypatch.setenv("STUDYHALL_OBJECT_STORE_MB", text)
    with pytest.raises(UserError, match=f"^STUDYHALL_OBJECT_STORE_MB={text}: expected a number of megabytes"):
        _object_store_mb()
