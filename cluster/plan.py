"""python -m cluster plan X.yaml: which set-ups fit, how long they take, what they cost, before anybody pays."""

import argparse
import json
from dataclasses import dataclass
from typing import Any

from cluster.cost.chips import Hardware, make_hardware, parse_gpus
from cluster.cost.memory import SetUp
from cluster.cost.model_shape import shape_of
from cluster.cost.phases import Asked, with_storage
from cluster.local import local_hardware
from cluster.measure import calibrated, measure
from cluster.plan_text import as_dict, in_lines
from cluster.setups import Advice, Offer, Question, advise
from cluster.workload import workload_of
from console import UserError, positive, whole, write_result
from data.config import Stage
from experiment import Experiment, load_experiment, located

_EXAMPLES = """examples:
  python -m cluster plan experiments/wiki2023_llama2_7b.yaml --gpus 8xA100-80G --price 2.50
  python -m cluster plan experiments/wiki2023_llama2_70b.yaml --gpus 64xH100 --host-memory 2048 --disk 20000
  python -m cluster plan experiments/bios_cpu.yaml --measure
      trains three steps for real on the hardware at hand, and plans with the speed that it saw

All times are modelled: training by cluster/cost/speed.py (held against published rows by python -m benchmarks.cost_model), the rest by cluster/cost/phases.py,
at the storage's rate. The wait for machines comes on top. exit code: 0 something fits, 2 nothing does, or bad input"""


@dataclass(frozen=True)
class Estimate:
    """What the recommended set-up takes. `hours` and `cost` None: CPUs whose speed is not measured."""

    hours: float | None
    gpu_hours: float | None
    cost: float | None
    num_gpus: int
    overrides: list[str]


def estimate(experiment: Experiment, gpus: str | None = None, price: float = 0.0) -> Estimate:
    """Hours and cost of training the experiment on `gpus` ("16xH100"; None: this machine). Modelled; UserError where nothing fits."""
    chosen = plan_experiment(experiment, hardware_of(gpus)).recommended
    assert chosen is not None
    hours = chosen.hours
    gpu_hours = None if hours is None else hours * chosen.hardware.num_gpus
    return Estimate(hours, gpu_hours, chosen.cost(price), chosen.hardware.num_gpus, chosen.overrides())


def hardware_of(gpus: str | None) -> Hardware:
    """The usual machines with these GPUs, or this machine."""
    if gpus is None:
        return local_hardware()
    count, chip = parse_gpus(gpus)
    return make_hardware(count, chip)


def plan_experiment(experiment: Experiment, hardware: Hardware) -> Advice:
    """UserError where no set-up of the trainer's fits, naming what is missing."""
    hardware = with_storage(calibrated(hardware, experiment.folder), experiment.folder)
    advice = advise(question_of(experiment, hardware), hardware)
    refuse_hopeless(advice, hardware)
    return advice


def question_of(experiment: Experiment, hardware: Hardware) -> Question:
    trainer, shape = experiment.trainer, shape_of(experiment.model)  # a name that is none is refused before transformers is imported
    stages = [stage for arm in ("base", *experiment.arms) for stage in experiment.stages(arm)]
    rank, on_experts = _adapters(stages)
    how = (trainer.zero_stage, trainer.row_bound, trainer.gradient_checkpointing, trainer.offload_optimizer)
    file = SetUp(*how, rank, on_experts, held=any(stage.anchor and stage.anchor.ewc for stage in stages))
    fp32 = trainer.precision == "fp32" or (trainer.precision == "auto" and hardware.chip is None)
    work, minutes = workload_of(experiment), trainer.checkpoint.every_minutes
    asked = Asked(len(experiment.arms) + 1, work.questions, experiment.exam.gpus)
    every_s, keep = 60 * minutes if minutes else None, trainer.checkpoint.keep
    return Question(shape, work, file, keep, fp32, every_s, asked, trainer.shapes, trainer.packing, trainer.teacher_precision == "fp32")


_EXPERT_NAMES = {"all-linear", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj", "gate_up_proj"}


def _adapters(stages: list[Stage]) -> tuple[int, bool]:
    """The largest rank of their adapters where every stage has one (one stage that trains all weights needs the memory for them), and whether any of them
    is beside experts."""
    settings = [stage.adapter.settings() if stage.adapter else {} for stage in stages]
    ranks = [int(one.get("r", 16)) if one else 0 for one in settings]
    targets = [[one["target_modules"]] if isinstance(one["target_modules"], str) else one["target_modules"] for one in settings if one]
    beside = any(name in _EXPERT_NAMES or "expert" in name for names in targets for name in names)
    beside = beside or any(one.get("target_parameters") for one in settings)
    return (max(ranks) if ranks and all(ranks) else 0), beside or not targets


def refuse_hopeless(advice: Advice, hardware: Hardware) -> None:
    if advice.recommended is None:
        asked = [one for one in advice.offers if one.set_up.available and bool(one.set_up.adapter) == one.adapter_in_file]
        nearest = min(asked, key=_lack)
        others = [one for one in advice.offers if one.can_be_chosen]
        hint = f"; {others[0].set_up} would fit: {' '.join(others[0].overrides())}" if others else ""
        raise UserError(f"no set-up fits {hardware}: {nearest.set_up} comes nearest and lacks {'; '.join(nearest.problems)}{hint}")


def _lack(one: Offer) -> float:
    """By how much of what there is a set-up fails, at its worst place."""
    shares = [one.host.peak / one.hardware.host_bytes]
    if one.hardware.chip:
        shares.append(one.gpu.total / one.hardware.chip.memory_bytes)
    if one.hardware.disk_bytes:
        shares.append(one.disk.peak / one.hardware.disk_bytes)
    return max(shares)


def add_plan(commands: Any) -> None:
    about = "Memory, time and cost of every set-up of an experiment on some GPUs; one is recommended. Needs no GPU, no torch, no Ray."
    plan = commands.add_parser("plan", help="what fits, how long it takes, what it costs", description=about, epilog=_EXAMPLES)
    plan.takes_experiment("data.root=DIR")
    plan.add_argument("--gpus", metavar="16xH100", help="how many of which; default: this machine")
    plan.add_argument("--price", type=positive, default=None, metavar="P", help="per GPU and hour, in any currency")
    plan.add_argument("--gpus-per-node", type=whole(1), metavar="N", help="default 8")
    plan.add_argument("--host-memory", type=positive, metavar="GIB", help="of one node")
    plan.add_argument("--disk", type=positive, metavar="GIB", help="free on the shared storage; not checked where not given")
    plan.add_argument("--network", type=positive, metavar="GBIT", help="of one node, all links together, Gb/s")
    plan.add_argument(
        "--storage",
        type=positive,
        metavar="GB/S",
        help="of the shared storage, all processes together; default: as preflight measured, else 5",
    )
    plan.add_argument("--measure", action="store_true", help="first train three steps here, and calibrate the model by them")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> None:
    experiment = load_experiment(args.file, args.overrides)
    if args.gpus:
        count, chip = parse_gpus(args.gpus)
        hardware = make_hardware(count, chip, args.gpus_per_node, args.host_memory, args.disk, args.network)
    else:
        hardware = local_hardware(args.host_memory, args.disk)
    with located(args.file):
        question = question_of(experiment, hardware)
        if args.measure:
            measure(args.file, args.overrides, experiment, question, local_hardware())
        hardware = with_storage(calibrated(hardware, experiment.folder), experiment.folder, args.storage)
        advice = advise(question, hardware)
        if args.json:
            write_result(json.dumps(as_dict(question, hardware, advice, args.price), indent=1))
        else:
            write_result("\n".join(in_lines(experiment.name, question, hardware, advice, args.price)))
        refuse_hopeless(advice, hardware)
