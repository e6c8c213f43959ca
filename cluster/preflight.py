"""python -m cluster preflight X.yaml: is this cluster ready for this experiment? One line a check; exit code 0 or 2."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from cluster import checks
from cluster.checks import Line, Nodes
from cluster.connect import connected, gpus_here
from cluster.cost.chips import Hardware, chip_of_device, make_hardware
from cluster.cost.phases import FILE as STORAGE
from cluster.plan import question_of
from cluster.setups import Offer, offer
from console import EXIT_BAD_INPUT, RunError, UserError, chatter_to, write_result
from data.ground.durable import write_json
from data.planning.plan_report import read_records
from experiment import Experiment, load_experiment, located
from trainer.config import ModelConfig

_EXAMPLES = """examples:
  RAY_ADDRESS=HEAD:6379 python -m cluster preflight experiments/wiki2023_qwen_7b.yaml runs=/shared/runs data.root=/shared/film
  python -m cluster preflight experiments/bios_cpu.yaml
      without RAY_ADDRESS: this machine, with a Ray of its own
  python -m cluster submit … does it first, on the cluster

exit code: 0 all is well, 2 something is wrong"""
_SAMPLED_BATCHES = 8
_MOST_UNKNOWN = 0.01


def add_preflight(commands: Any) -> None:
    about = "Checks the cluster, its storage, the model and the data of an experiment, a line each. Trains nothing."
    parser = commands.add_parser("preflight", help="is the cluster ready for an experiment", description=about, epilog=_EXAMPLES)
    parser.takes_experiment("runs=/shared/runs")
    parser.add_argument("--insecure", action="store_true", help="accept a cluster of several nodes that has no token authentication")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of lines")
    parser.set_defaults(run=_preflight)


def _preflight(args: argparse.Namespace) -> int:
    experiment = load_experiment(args.file, args.overrides)
    told: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch, chatter_to(Path(scratch) / "preflight.log"), located(args.file):
        for line in lines(experiment, args.insecure):
            told.append(line)
            if not args.json:
                write_result(str(line))
    if args.json:
        write_result(json.dumps([line.__dict__ for line in told], indent=1))
    wrong = [line for line in told if line.good is False]
    if not args.json:
        write_result(f"{len(wrong)} wrong of {len(told)} checks" if wrong else f"ready: {len(told)} checks")
    return EXIT_BAD_INPUT if wrong else 0


def lines(experiment: Experiment, insecure: bool = False) -> Iterator[Line]:
    """Every check's line as it comes. What cannot be known after a failure is left out."""
    in_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if in_cluster and not Path(experiment.runs).is_absolute():
        yield Line(
            "storage", False, f"runs: {experiment.runs} is this machine's own; give storage that every node shares, e.g. runs=/shared/runs"
        )
        return
    from trainer.cpus import cpus_for
    from trainer.ray_group import room

    try:
        with connected(cpus_needed=0 if in_cluster else cpus_for(experiment.trainer.workers(0)[1]), insecure=insecure):
            yield _door(in_cluster, insecure)
            num_gpus = gpus_here()
            least, most = experiment.trainer.workers(num_gpus)
            nodes = Nodes()
            yield (answer := checks.answering(nodes))
            if not answer.good:
                return
            yield checks.versions(nodes)
            enough = checks.cpus_and_gpus(nodes, least, num_gpus > 0, cpus_for(least))
            yield from enough
            yield checks.shared_memory(nodes)
            if all(line.good for line in enough):
                yield checks.collectives(max(least, min(most, room(num_gpus > 0))), num_gpus > 0)
            else:
                yield Line("collectives", None, "not tried: there is no room for the workers")
            priced, line = _memory(experiment, nodes, least, num_gpus > 0)
            yield line
            yield (place := checks.storage(nodes, experiment.folder, priced.disk.peak if priced else None))
            if place.good:
                rates, line = checks.storage_speed(nodes, experiment.folder)
                if rates:
                    write_json(experiment.folder / STORAGE, rates)
                yield line
            yield from _model_and_data(experiment, nodes)
    except RunError as error:
        yield Line("cluster", False, str(error))


def _door(in_cluster: bool, insecure: bool) -> Line:
    """`connected` has refused an open cluster of several nodes already."""
    if not in_cluster:
        return Line("authentication", True, "a Ray of our own, with a token")
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "token":
        return Line("authentication", True, "by token")
    return Line("authentication", True if insecure else None, "no token asked for (one node only, or --insecure)")


def _memory(experiment: Experiment, nodes: Nodes, workers: int, use_gpu: bool) -> tuple[Offer | None, Line]:
    """The file's own set-up, priced for the machines that are there."""
    ram = min(node.facts["ram_bytes"] for node in nodes.all if node.facts["gpus"] or not use_gpu)  # a head without GPUs trains nothing
    per_node = max(1, -(-workers // len(nodes.all)))
    if use_gpu:
        gpus = [gpu for node in nodes.all for gpu in node.facts["gpus"]]
        chip = chip_of_device(gpus[0]["name"], gpus[0]["bytes"]) if gpus else None
        if chip is None:
            return None, Line(
                "memory", None, f"nothing is known of {gpus[0]['name'] if gpus else 'these GPUs'}, so nothing is planned for it"
            )
        per_node = max(len(node.facts["gpus"]) for node in nodes.all)
        hardware = replace(make_hardware(workers, replace(chip, memory_bytes=min(gpu["bytes"] for gpu in gpus)), per_node), host_bytes=ram)
    else:
        hardware = Hardware(None, workers, per_node, ram)
    try:
        question = question_of(experiment, hardware)
    except UserError as error:
        return None, Line("memory", None, f"not planned: {error}")
    priced = offer(question, question.file, hardware)
    if priced.problems:
        return priced, Line("memory", False, f"{priced.set_up}: {'; '.join(priced.problems)} (python -m cluster plan shows what fits)")
    gib = 2**30
    gpu = f"{priced.gpu.total / gib:,.1f} GiB a GPU, " if use_gpu else ""
    return priced, Line("memory", True, f"{priced.set_up}: {gpu}{priced.host.peak / gib:,.1f} GiB a node, modelled, of {ram / gib:,.1f}")


def _model_and_data(experiment: Experiment, nodes: Nodes) -> Iterator[Line]:
    from trainer.jobs.model_source import describe_model

    model = experiment.model
    try:
        folder = describe_model(experiment.folder, model)
    except UserError as error:
        yield Line("model", False, str(error).removeprefix("model.name: "))
        return
    if folder is None:
        yield Line("model", True, "made on the spot, with its tokenizer")
    elif model.name and Path(model.name).is_dir():
        yield _model_folder(model, nodes)
    else:
        yield Line("model", True, f"{model.name}: the hub gives it; its weights come to {experiment.folder / 'hub'} when training starts")
    for name, further in experiment.models.items():
        try:
            place = describe_model(experiment.folder, further)
        except UserError as error:
            yield Line("model", False, f"models.{name}: {str(error).removeprefix('model.name: ')}")
            continue
        is_folder = bool(further.name and Path(further.name).is_dir())
        yield (_model_folder(further, nodes) if is_folder else Line("model", True, f"models.{name}: {place}: the hub gives it"))
    try:
        yield _data(experiment, folder)
    except UserError as error:
        yield Line("data", False, str(error))


def _model_folder(model: ModelConfig, nodes: Nodes) -> Line:
    from cluster import probe
    from trainer.jobs.text_model import check_text_model
    from trainer.network.model_check import check_model_folder

    folder = Path(model.name or "")
    try:
        check_model_folder(folder, model.resize_embeddings)
        check_text_model(folder)
    except UserError as error:
        return Line("model", False, str(error))
    for node, there in nodes.ask(probe.is_folder, str(folder.resolve())):
        if there is not True:
            return Line("model", False, f"{folder}: {node.facts['host']} does not see it; put it on storage that all nodes share")
    return Line("model", True, f"{folder}: readable safetensors, seen by every node")


def _data(experiment: Experiment, model_folder: Path | None) -> Line:
    """Records can be read, and the tokenizer makes sense of them: known words, ids that the model has, items that rows hold."""
    catalogue, corpus, origin = read_records(experiment.data, experiment.seed)
    if corpus is None:
        return Line("data", False, "data.root is not given, so there is nothing to train on")
    if model_folder is None:
        return Line("data", True, f"{origin}; the tokenizer is made from them")
    from data.rows.token_store import record_batches
    from data.tokens import Encoder, load_tokenizer
    from data.wording.begins import begin
    from trainer.network.text_config import positions, text_config

    tokenizer = load_tokenizer(str(model_folder))
    known = getattr(text_config(model_folder), "vocab_size", len(tokenizer))
    if not experiment.model.resize_embeddings and len(tokenizer) > known:
        text = f"the tokenizer has {len(tokenizer)} tokens and the model knows {known}: they do not belong together"
        return Line("data", False, text)
    begin(tokenizer, experiment.model.bos)
    encoder = Encoder(tokenizer)
    ids = [ids for _, batch in islice(record_batches(catalogue), _SAMPLED_BATCHES) for ids, _ in encoder.encode(batch)]
    total = sum(map(len, ids))
    unknown = sum(item.count(tokenizer.unk_token_id) for item in ids) / max(1, total) if tokenizer.unk_token_id is not None else 0.0
    if unknown > _MOST_UNKNOWN:
        return Line("data", False, f"{unknown:.1%} of the tokens are unknown to the tokenizer: it is not made for these texts")
    holds = min(experiment.trainer.row_bound, positions(model_folder))
    longest = max(map(len, ids), default=0)
    if longest > holds and experiment.trainer.long_documents == "refuse":
        return Line(
            "data",
            False,
            f"an item has {longest} tokens, rows and positions hold {holds}: raise trainer.row_tokens, or long_documents=split",
        )
    more = f", the longest item {longest:,} tokens" + (f" (split at {holds:,})" if longest > holds else "")
    return Line("data", True, f"{origin}; {len(ids):,} items tried: {unknown:.2%} unknown tokens{more}")
