"""python -m data plan …: what an experiment would train, before anything starts."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.tree import Tree

from console import UserError, out, tell, whole, write_result
from data.config import DataConfig
from data.corpus.contamination import contamination
from data.corpus.golds import unreachable, unreachable_in_words
from data.curriculum.arms import Arms, compile_arms, stage_graph
from data.curriculum.catalogue import Catalogue
from data.curriculum.orders import Items
from data.curriculum.plan import Plan
from data.planning.lengths import Lengths, count_lengths
from data.planning.plan_report import arms_report, difference, graph_report, packing_fill, read_what_is_new, step_report
from data.records import Corpus
from data.wording.begins import Begins

_EXAMPLES = """examples:
  python -m data plan experiments/bios_cpu.yaml
      stages, steps, tokens and coverage of every arm, which stages they share, what the exam shares with training
  python -m data plan experiments/wiki2023_llama2_7b.yaml data.root=/srv/films --world-size 8
      … and how full the rows of 8 ranks are
  python -m data plan experiments/bios_cpu.yaml --step pit:412
      the items of one step of an arm, counted from 0 over all its stages
  python -m data plan experiments/bios_cpu.yaml --diff pit mix
  python -m data plan --diff a.yaml b.yaml
      where two arms, or the arms that two experiments have in common, part ways

exit code: 0 good, 2 bad input (one line says where, why, and what to do)"""


@dataclass(frozen=True)
class Planned:
    """An experiment read, counted and compiled."""

    name: str
    row_tokens: int
    arms: Arms
    plans: dict[str, list[Plan]]
    catalogue: Catalogue
    corpus: Corpus | None
    lengths: Lengths
    origin: str
    answer_tokens: int | None = None
    """Of the exam."""


PlannedOf = Callable[[str, list[str]], Planned]
"""(file, overrides) → Planned: the door's, for it alone knows the whole experiment."""


def plan_arms(
    name: str,
    data: DataConfig,
    arms: Arms,
    seed: int,
    model_name: str | None,
    revision: str | None,
    tiny_vocab_size: int | None,
    row_tokens: int,
    since: Path | None = None,
    answer_tokens: int | None = None,
    bos: Begins = "auto",
) -> Planned:
    """Reads the records (or takes the declared counts), counts tokens and compiles every arm. UserError where that cannot be.

    `since`: records of the run that the experiment starts from.
    """
    arms, catalogue, corpus, origin = read_what_is_new(data, seed, arms, since)
    lengths = count_lengths(catalogue, model_name, revision, tiny_vocab_size, bos)
    for stage in chain.from_iterable(arms.values()):
        lengths.of(stage)  # kept, and now it is known which tokens are used
    return Planned(
        name, row_tokens, arms, compile_arms(arms, catalogue, seed, lengths.of), catalogue, corpus, lengths, origin, answer_tokens
    )


def add_plan(commands: Any, planned_of: PlannedOf) -> None:
    """The command's arguments, and the command."""
    about = "Compiles every arm's curriculum and prints it; trains nothing."
    plan = commands.add_parser("plan", help="what an experiment would train, step by step", description=about, epilog=_EXAMPLES)
    plan.add_argument("file", metavar="X.yaml", nargs="?", help="an experiment; not needed for --diff of two files")
    plan.takes_overrides("data.root=DIR")
    plan.add_argument(
        "--world-size", type=whole(1), default=0, metavar="N", help="also pack the steps for N ranks, and say how full their rows are"
    )
    plan.add_argument("--step", metavar="ARM:N", help="print the items of step N of an arm")
    plan.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two arms of X.yaml, or two files")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    plan.set_defaults(run=lambda args: _plan(args, planned_of))


def _plan(args: argparse.Namespace, planned_of: PlannedOf) -> None:
    if args.diff:
        report = _diff(args, planned_of)
        show = _show_diff
    elif args.file is None:
        raise UserError("name an experiment: python -m data plan X.yaml")
    elif args.step:
        planned = planned_of(args.file, args.overrides)
        arm, number = _arm_and_step(args.step, planned)
        report = {"arm": arm, **step_report(planned.plans[arm], number, planned.catalogue)}
        show = _show_step
    else:
        report = _whole(planned_of(args.file, args.overrides), args.world_size)
        show = _show_whole
    if args.json:
        write_result(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        show(report)


def _whole(planned: Planned, world_size: int) -> dict[str, Any]:
    arms = arms_report(planned.arms, planned.plans, planned.catalogue, planned.lengths)
    if world_size:
        capacity = planned.row_tokens
        for arm, stages in arms.items():
            for n, stage in enumerate(stages):
                lengths = _lengths_for_packing(planned, arm, n)
                stage["packing"] = packing_fill(planned.plans[arm][n], lengths, world_size, capacity)
    graph = stage_graph(planned.arms, planned.plans)
    steps_apart = sum(plan.num_steps for arm, plans in planned.plans.items() if arm != "base" for plan in plans)
    corpus = planned.corpus
    return {
        "experiment": planned.name,
        "records": planned.origin,
        "tokens": planned.lengths.note,
        "arms": arms,
        "graph": graph_report(graph),
        "shared": {"stages": graph.num_stages(), "steps": graph.num_steps(), "steps_if_every_arm_trained_alone": steps_apart},
        "overlap": _overlap(corpus) if corpus else None,
        "unreachable": _unreachable(planned),
        "contamination": contamination(corpus).as_dict() if corpus else None,
    }


def _unreachable(planned: Planned) -> dict[str, Any] | None:
    if planned.corpus is None or planned.answer_tokens is None:
        return None
    return unreachable(planned.corpus.part("test").questions, planned.answer_tokens, planned.lengths.answer).as_dict()


def _lengths_for_packing(planned: Planned, arm: str, n: int) -> Items:
    lengths = planned.lengths.of(planned.arms[arm][n])
    if lengths is None:
        raise UserError("--world-size packs items by their lengths, and without data there are none: give data.root")
    return lengths


def _overlap(corpus: Corpus) -> dict[str, Any] | None:
    overlap = corpus.overlap
    if overlap is None:
        return None
    return {
        "policy": overlap.policy,
        "questions": len(overlap.question_ids),
        "same_answer": overlap.same_answer,
        "documents": len(overlap.document_ids),
        "dropped": overlap.dropped,
    }


def _arm_and_step(text: str, planned: Planned) -> tuple[str, int]:
    arm, _, number = text.rpartition(":")
    if not arm or not number.isdecimal():
        raise UserError(f"--step {text}: expected ARM:N, e.g. --step {list(planned.arms)[-1]}:0")
    return _known(arm, planned), int(number)


def _known(arm: str, planned: Planned) -> str:
    if arm not in planned.plans:
        raise UserError(f"no arm is called {arm}; known: {', '.join(planned.plans)}")
    return arm


def _diff(args: argparse.Namespace, planned_of: PlannedOf) -> dict[str, Any]:
    """{"pairs": {"pit | mix": difference}}"""
    files = [Path(side).suffix in (".yaml", ".yml") for side in args.diff]
    if any(files) != all(files):
        raise UserError(f"--diff {' '.join(args.diff)}: compare two arms of X.yaml, or two files")
    if all(files):
        overrides = [*([args.file] if args.file else []), *args.overrides]
        a, b = (planned_of(file, overrides) for file in args.diff)
        common = [arm for arm in a.arms if arm in b.arms and arm != "base"]
        if not common:
            raise UserError(f"{args.diff[0]} and {args.diff[1]} have no arm of the same name")
        pairs = {arm: difference(a.plans[arm], a.catalogue, b.plans[arm], b.catalogue) for arm in common}
    elif args.file is None:
        raise UserError("--diff of two arms needs their experiment: python -m data plan X.yaml --diff A B")
    else:
        planned = planned_of(args.file, args.overrides)
        left, right = (planned.plans[_known(arm, planned)] for arm in args.diff)
        pairs = {" | ".join(args.diff): difference(left, planned.catalogue, right, planned.catalogue)}
    return {"a": args.diff[0], "b": args.diff[1], "pairs": pairs}


def _show_whole(report: dict[str, Any]) -> None:
    tell(f"{report['experiment']}: {report['records']}; tokens {report['tokens']}")
    num_base = len(report["arms"]["base"])
    for arm, stages in report["arms"].items():
        first = 0 if arm == "base" else num_base
        if not stages[first:]:
            continue
        table = Table(
            "stage",
            "order",
            "rate",
            "steps",
            "tokens by kind",
            "each item",
            "plan",
            title=arm + (", after base" if first else ""),
            title_justify="left",
        )
        for n, stage in enumerate(stages[first:], first):
            tokens = "\n".join(f"{kind} {t:,}" for kind, t in (stage["tokens_by_kind"] or {}).items()) or "?"
            settings = "".join(f"\n{key}: {value}" for key, value in stage["settings"].items())
            name = f"{n + 1}. {' + '.join(stage['mix'])}{settings}"
            words = stage["in_words"].replace(", ", "\n")
            table.add_row(
                name, stage["order"], f"{stage['rate']:g} {stage['schedule']}", f"{stage['steps']:,}", tokens, words, stage["plan_hash"][:8]
            )
        out.print(table, markup=False)
        for n, stage in enumerate(stages[first:], first):
            if "packing" in stage:
                tell(f"  stage {n + 1}: " + _fill_in_words(stage["packing"]))
    tree = Tree("stages that arms share are trained once")
    _grow(tree, report["graph"])
    out.print(tree, markup=False)
    shared = report["shared"]
    tell(f"{shared['stages']} stages, {shared['steps']:,} steps; every arm alone would take {shared['steps_if_every_arm_trained_alone']:,}")
    if line := unreachable_in_words(report["unreachable"]):
        tell(line)
    if report["contamination"]:
        _show_contamination(report["overlap"], report["contamination"])


def _fill_in_words(packing: dict[str, Any]) -> str:
    return (
        f"{packing['world_size']} ranks, rows of {packing['row_tokens']:,}: {packing['fill']:.1%} full, {packing['tokens_per_rank']:,} tokens "
        f"a rank and step in {packing['micro_steps']:g} micro-steps, the busiest rank {packing['busiest']:.2f} × the mean"
    )


def _grow(tree: Tree, nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        ends = f" → {', '.join(node['arms'])}" if node["arms"] else ""
        _grow(tree.add(f"{node['stage']} ({node['steps']:,} steps){ends}"), node["after"])


def _show_contamination(overlap: dict[str, Any] | None, runs: dict[str, Any]) -> None:
    if overlap:
        tell(
            f"also in training, whole text: {overlap['questions']} exam questions ({overlap['same_answer']} with an accepted answer), "
            f"{overlap['documents']} exam documents; policy {overlap['policy']}; dropped: {overlap['dropped'] or 'nothing'}"
        )
    for kind, shared in runs["kinds"].items():
        tell(
            f"share {runs['num_words']} words in a row with training: {shared['shared']:,} of {shared['long_enough']:,} exam {kind} "
            f"that are long enough ({shared['texts']:,} in all)"
        )
    for example in runs["examples"]:
        tell(f"  {example}")


def _show_step(report: dict[str, Any]) -> None:
    tell(
        f"step {report['step']} of {report['arm']} (stage {report['stage']}, its step {report['step_of_stage']}), {len(report['items'])} items:"
    )
    runs = [(name, len(list(run))) for name, run in groupby(item["is"] for item in report["items"])]
    tell(", then ".join(name + (f" ({num}×)" if num > 1 else "") for name, num in runs[:12]) + (", …" if len(runs) > 12 else ""))
    for item in report["items"]:
        tell(f"  {item['is']} ({item['item']})" + (f": {item['text']}" if item["text"] else ""))


def _show_diff(report: dict[str, Any]) -> None:
    for name, d in report["pairs"].items():
        first = d["first_differing_step"]
        if first is None:
            tell(f"{name}: the same items in the same {d['steps'][0]:,} steps")
            continue
        tell(f"{name}: {d['steps'][0]:,} and {d['steps'][1]:,} steps; the first that differs is step {first:,}")
        for kind, c in d["trained_unequally_often"].items():
            tell(f"  {c['items']:,} {kind} are not trained equally often: {c['a']:,} times in all against {c['b']:,}")
        if not d["trained_unequally_often"]:
            tell("  each item equally often: only order or batches differ")
