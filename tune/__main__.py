"""python -m tune X.yaml: searches the values that an experiment leaves open for the best knowledge score."""

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import EXIT_FAILED, Command, RunError, UserError, chatter_to, door, say, write_result
from data.ground.imports import importing
from data.records import Corpus
from experiment import Experiment, located, read_experiment
from experiment_files import check_files
from tune.deciding.ledger import identity
from tune.deciding.objective import missing_for
from tune.deciding.space import arm_of, check_space, refusal

if TYPE_CHECKING:
    from tune.finish import Finish

_ABOUT = """\
Trains and examines one arm of an experiment with the values that its section `search` names, and finds the best by what the model knows:
the exam on questions that are set aside for choosing (exam.validation_share). The winner is examined once on the other test questions.

The same command goes on where a search was stopped or killed; trials that have ended are not run again.
exit codes: 0 done; 1 failed; 2 bad input; 75 stopped by SIGTERM, 130 by Ctrl-C, both with a table of what is known
"""
_EXAMPLES = """\
examples:
  python -m tune experiments/bios_cpu_search.yaml
  python -m tune experiments/wiki2023_llama2_7b_search.yaml --dry-run --gpus 8xA100-80G
  python -m tune experiments/bios_cpu_search.yaml search.trials=30 search.max_concurrent=1
  python -m trainer runs/bios-cpu-search/search/winner.yaml

Settings under search: are described in tune/config.py, and in docs/search.md.
"""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Command("python -m tune", description=_ABOUT, epilog=_EXAMPLES)
    parser.takes_experiment("search.trials=30", "experiment", "the experiment's YAML file, with a section search")
    parser.add_argument(
        "--dry-run", action="store_true", help="print trials, shared stages, steps, and cost where it can be planned; train nothing"
    )
    parser.add_argument("--gpus", metavar="8xA100-80G", help="with --dry-run: the GPUs to plan for; default: this machine")
    parser.add_argument("--retry-failed", action="store_true", help="try trials that raised once more")
    parser.add_argument("--json", action="store_true", help="print the report (or the dry run) as JSON")
    parser.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None) -> int:
    arguments = _arguments(argv)
    path = arguments.experiment
    experiment, values = read_experiment(path, arguments.overrides)
    _check(path, experiment, values)
    with located(path):
        check_files(experiment, networks=arguments.dry_run)
        if arguments.dry_run:
            from tune.dry_run import dry_run, in_lines

            report = dry_run(experiment, values, arguments.gpus)
            write_result(json.dumps(report, indent=1) if arguments.json else "\n".join(in_lines(report)))
            return 0
        report = _search(path, experiment, values, arguments.retry_failed, arguments.insecure)
    if arguments.json:
        write_result(json.dumps(report, indent=1))
    return 0 if report["winner"] else EXIT_FAILED


def _check(path: str, experiment: Experiment, values: dict[str, Any]) -> None:
    """What can be refused without looking at data or machines."""
    if experiment.search is None:
        raise UserError(f"{path}:1: search: is missing: the section says which values are searched (docs/search.md)")
    if experiment.updates:
        raise refusal(path, (), "an experiment with updates is searched round by round: give it without them, or with base: runs/NAME:ARM")
    if not experiment.exam.validation_share:
        raise refusal(
            path, (), "exam.validation_share: is missing: a search needs questions to choose by that the final test does not ask; e.g. 0.5"
        )
    if experiment.trainer.checkpoint.mirror:
        raise refusal(path, (), "trainer.checkpoint.mirror: a search keeps the weights of its best trials alone; leave the mirror out")
    try:
        arm_of(experiment)
    except UserError as error:
        raise refusal(path, ("arm",), str(error).removeprefix("search.arm: ")) from None
    check_space(path, values, experiment)


def _search(path: str, experiment: Experiment, values: dict[str, Any], retry_failed: bool, insecure: bool) -> dict[str, Any]:
    """Everything from records to report; what is known is reported however it ends."""
    experiment.folder.mkdir(parents=True, exist_ok=True)
    from trainer.jobs.reading import locked

    log = experiment.folder / "logs" / "search.log"
    with locked(experiment.folder), chatter_to(log):
        from data.load import load_corpus
        from tune.finish import Finish

        say(f"{experiment.name}: reading records (chatter: {log})")
        if os.environ.get("RAY_ADDRESS") and not Path(experiment.runs).is_absolute():
            raise UserError(
                f"runs: {experiment.runs} is inside the job's temporary copy; give storage that every node shares, e.g. runs=/shared/runs"
            )
        corpus = load_corpus(experiment.data, experiment.seed)
        finish = Finish(experiment, values, arm_of(experiment), corpus)
        _check_exam(path, experiment, finish.validation)
        finish.ledger.check_identity(identity(values, finish.arm, finish.search, corpus.fingerprint()))
        if retry_failed and (count := finish.ledger.forget("failed")):
            say(f"{count} trials that raised are tried once more")
        report: dict[str, Any] = {}
        try:
            _run(path, experiment, values, finish, insecure)
        except UserError:
            raise
        except RunError as error:
            report = finish.write()
            raise RunError(f"{error} (details: {log}; what is known stays)") from error
        except BaseException:
            report = finish.write()
            raise
        else:
            report = finish.write()
    return report


def _check_exam(path: str, experiment: Experiment, validation: Corpus) -> None:
    search = experiment.search
    assert search is not None
    if why := missing_for(search.metric, search, validation, experiment.exam):
        key, _, reason = why.partition(": ")
        raise refusal(path, (key,), reason)


def _run(path: str, experiment: Experiment, values: dict[str, Any], finish: "Finish", insecure: bool) -> None:
    """Trials, then the winner's test; without anything to do it needs no Ray."""
    from cluster.connect import announce_cluster, connected, gpus_here
    from evaluation.examining.examine import engine_options

    with importing():
        from tune.search import Search, concurrency_note, lay_out, num_cpus

    in_cluster = bool(os.environ.get("RAY_ADDRESS"))
    with connected(cpus_needed=1, insecure=insecure) if in_cluster else nullcontext():
        gpus, cpus = (gpus_here(), num_cpus()) if in_cluster else (_local_gpus(), os.cpu_count() or 1)
        try:
            trainer = experiment.trainer
            layout = lay_out(finish.search, trainer.num_workers, experiment.exam.gpus, gpus, cpus)
        except UserError as error:
            key, _, reason = str(error).partition(": ")
            raise refusal(path, (key,), reason) if key in finish.search.model_fields_set else UserError(f"{path}:1: {error}") from None
        if finish.is_complete():
            say("every trial has ended, and the winner has sat its test: nothing to do")
            return
        say(f"{finish.questions()['validation']:,} questions to choose by; {concurrency_note(layout)}")
        with connected(layout.cpus_needed(finish.search), layout.gpus, "set search.max_concurrent lower", insecure):
            announce_cluster()
            options = engine_options(experiment.exam, gpus)
            search = Search(experiment, values, finish.arm, layout, finish.validation, options)
            try:
                finish.ended = search.run()
                finish.sit_test(search)
            finally:
                search.close()


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    door(main)
