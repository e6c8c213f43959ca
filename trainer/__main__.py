"""python -m trainer X.yaml: trains every arm of an experiment, then examines it."""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from console import Command, RunError, UserError, chatter_to, door, run_child, say, whole, write_result
from data.ground.imports import importing
from experiment import Experiment, load_experiment, located
from experiment_files import check_files

_ABOUT = """\
Trains every arm of an experiment and examines the result with `python -m evaluation`.

Stages that are already trained are not trained again: run the same command to go on after a stop, at the step it had come to.
`python -m trainer gc X.yaml` shows, and with --delete removes, what a run folder holds that nothing needs any more.
`python -m trainer hf runs/NAME/stages/KEY` makes a trained model's folder again from its stage's weights.
`python -m trainer model convert FILE.gguf --out DIR` makes a model folder of a GGUF file.
`python -m trainer residual -h`: what an instruct model has learnt, as a file to add to other models.
exit codes: 0 done; 1 failed; 2 bad input; 75 stopped by SIGTERM, 130 by Ctrl-C, both with everything saved
"""
_EXAMPLES = """\
examples:
  python -m trainer experiments/bios_cpu.yaml
  python -m trainer experiments/wiki2023_cpu.yaml data.root=/data/wiki2023_film
  python -m trainer experiments/wiki2023_llama2_7b.yaml --dry-run
  python -m trainer built/experiment.yaml --final
  python -m trainer gc experiments/bios_cpu.yaml --keep-best 2
  ray job submit --working-dir . -- python -m trainer experiments/bios_cpu.yaml runs=/shared/runs     (or: python -m cluster submit)
"""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Command("python -m trainer", description=_ABOUT, epilog=_EXAMPLES)
    parser.takes_experiment("trainer.zero_stage=3", "experiment")
    parser.add_argument("--dry-run", action="store_true", help="print stages, steps, tokens, coverage and plan hashes; train nothing")
    parser.add_argument("--no-exam", action="store_true", help="train only; `python -m evaluation X.yaml` examines later")
    parser.add_argument("--no-ray", action="store_true", help="train in this process alone (one GPU or CPU), for trials")
    parser.add_argument(
        "--update", metavar="NAME", help="train only this round of the experiment's updates; the one before must be trained"
    )
    parser.add_argument(
        "--final",
        nargs="?",
        const="",
        metavar="ARM",
        help="train the best arm of the report (or ARM) once more, the exam's questions with it: for use, not for measuring",
    )
    parser.add_argument(
        "--as-written", action="store_true", help="use the file's settings on this machine's GPUs even where they seem not to fit"
    )
    parser.add_argument("--json", action="store_true", help="print tables as JSON")
    parser.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["gc"]:
        return _gc(given[1:])
    if given[:1] == ["hf"]:
        from trainer.export.remake import remake_command

        return remake_command(given[1:])
    if given[:1] == ["residual"]:
        from trainer.residual_command import residual_command

        return residual_command(given[1:])
    if given[:1] == ["model"]:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: bars of two libraries over each other
        from trainer.convert import model_command

        return model_command(given[1:])
    arguments = _arguments(argv)
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    with located(arguments.experiment):
        if arguments.final is not None:
            return _final(experiment, arguments)
        chosen = _chosen(experiment, arguments.update)
        check_files(chosen)  # before libraries are imported that take many seconds
        if arguments.dry_run:
            _dry_run(chosen, arguments.json)
        else:
            _train(chosen, arguments.no_ray, arguments.insecure, arguments.as_written)
    if arguments.update:
        return 0
    for update in experiment.updates if not arguments.dry_run else ():
        # A process each: DeepSpeed remembers the process groups of the one before.
        command = [sys.executable, "-m", "trainer", arguments.experiment, *arguments.overrides, "--update", update]
        flags = [
            flag
            for flag, given in (("--no-ray", arguments.no_ray), ("--insecure", arguments.insecure), ("--as-written", arguments.as_written))
            if given
        ]
        if code := run_child([*command, *flags]):
            return code
    if arguments.dry_run or arguments.no_exam:
        return 0
    flags = [flag for flag, given in (("--json", arguments.json), ("--insecure", arguments.insecure)) if given]
    command = [sys.executable, "-m", "evaluation", arguments.experiment, *arguments.overrides, *flags]
    return run_child(command)  # the rooms meet on disk; same Ray cluster where RAY_ADDRESS names one


def _final(experiment: Experiment, arguments: argparse.Namespace) -> int:
    """The curriculum that was chosen by an exam, on everything; what it is worth is what the exam said of it."""
    if arguments.update:
        raise UserError("--final and --update do not go together")
    from trainer.jobs.retention import best_arms

    arm = arguments.final or next(iter(best_arms(experiment.folder, 1) - {"base"}), "")
    if not arm:
        raise UserError(f"--final: no arm of {experiment.folder / 'report.json'} does better than the base; name one with --final ARM")
    final = experiment.final(arm)
    check_files(final)
    if arguments.dry_run:
        _dry_run(final, arguments.json)
        return 0
    _train(final, arguments.no_ray, arguments.insecure, arguments.as_written)
    hf = final.folder / json.loads((final.folder / "arms.json").read_text())["arms"][arm]["hf"]
    say(f"{arm} on all documents and all questions: {hf}; it is not examined, for no question is left that it has not seen")
    say(f"what the curriculum was worth before: {experiment.folder / 'report.html'}")
    say(f'use it: python -m evaluation ask {hf} "a question"; or vllm serve {hf}')
    return 0


def _gc(argv: list[str]) -> int:
    about = "Lists what a run folder holds that nothing needs any more, with sizes; --delete removes it."
    parser = Command("python -m trainer gc", description=about)
    parser.takes_experiment("runs=/shared/runs", "experiment")
    parser.add_argument(
        "--keep-best", type=whole(0), metavar="N", help="also the stages that only arms outside the N best (by test EM) need"
    )
    parser.add_argument("--unfinished", action="store_true", help="also stages under way, with their checkpoints")
    parser.add_argument("--delete", action="store_true", help="delete; without it nothing is touched")
    arguments = parser.parse_intermixed_args(argv)
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    folder = experiment.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run")
    from trainer.jobs.reading import locked
    from trainer.jobs.retention import collect

    place, drop = experiment.trainer.checkpoint.mirror, []
    if place:
        from trainer.store.mirror import Mirror

        drop = [Mirror(place, folder).drop]
    with locked(folder):
        collect(folder, arguments.keep_best, arguments.unfinished, arguments.delete, experiment.curricula(), *drop)
    return 0


def _chosen(experiment: Experiment, update: str | None) -> Experiment:
    """The experiment itself, or one of its rounds."""
    if update is None:
        return experiment
    if update not in experiment.updates:
        raise UserError(f"--update {update}: the experiment has no such update; it has {', '.join(experiment.updates) or 'none'}")
    return experiment.rounds()[list(experiment.updates).index(update)]


def _dry_run(experiment: Experiment, as_json: bool) -> None:
    from trainer.dry_run import dry_run, in_lines, merge_lines

    if experiment.updates:
        say(f"updates ({', '.join(experiment.updates)}) can be planned when the round before is trained: --dry-run --update NAME")
    check_files(experiment, networks=True)
    planned = dry_run(
        experiment.data, experiment.model, experiment.curricula(), experiment.seed, experiment.base_records, experiment.exam.answer_tokens
    )
    from trainer.step.fits import check_planned  # imports transformers: seconds that bad records need not wait for

    own = experiment.starts()
    arms = experiment.curricula()
    check_planned({arm: stages for arm, stages in arms.items() if arm not in own}, experiment.model, experiment.trainer)
    for arm, name in own.items():
        check_planned({arm: arms[arm]}, experiment.models[name], experiment.trainer)
    merged = {name: merge.model_dump(mode="json") for name, merge in experiment.merges().items()}
    report = {"experiment": experiment.name, **planned, **({"merged": merged} if merged else {})}
    if as_json:
        write_result(json.dumps(report, indent=1))
    else:
        starts = [f"{arm} starts from {experiment.models[name].name}" for arm, name in experiment.starts().items()]
        write_result("\n".join([*in_lines(report), *starts, *merge_lines(experiment.merges())]))


def _train(experiment: Experiment, no_ray: bool, insecure: bool, as_written: bool) -> None:
    log = experiment.folder / "logs" / "trainer.log"
    experiment.folder.mkdir(parents=True, exist_ok=True)  # where that cannot be, it is told before torch is imported
    from trainer.jobs.reading import locked, read_records

    with locked(experiment.folder), chatter_to(log):
        from cluster.connect import Connecting, announce_cluster, connected, gpus_here
        from trainer.cpus import cpus_for

        say(f"{experiment.name}: reading records, making tokens and plans (chatter: {log})")
        # A submitted job asks its cluster for GPUs; a run of its own asks this machine, and needs no Ray when nothing is left to train.
        in_cluster = bool(os.environ.get("RAY_ADDRESS"))
        if in_cluster and not Path(experiment.runs).is_absolute():
            raise UserError(
                f"runs: {experiment.runs} is inside the job's temporary copy; give storage that every node shares, e.g. runs=/shared/runs"
            )
        with connected(cpus_needed=1, insecure=insecure) if in_cluster else nullcontext():
            num_gpus = gpus_here() if in_cluster else _local_gpus()
            trainer = experiment.trainer
            if num_gpus and not in_cluster and not as_written:
                from cluster.fallback import settings_here

                trainer, line = settings_here(experiment, 1 if no_ray else min(num_gpus, trainer.workers(num_gpus)[1]))
                say(line)
            least, most = (1, 1) if no_ray else trainer.workers(num_gpus)
            if 0 < num_gpus < least:
                raise UserError(f"trainer.num_workers: {least} is more than the {num_gpus} GPUs there are")
            use_gpu = num_gpus > 0
            cpus, gpus = cpus_for(least if in_cluster else most), least if use_gpu else 0
            with Connecting(cpus, gpus, "set trainer.num_workers lower") as ray_comes:
                records = None
                # A run that has come to its end before has probably nothing to train; what is bad is refused before Ray is started.
                if not (no_ray or experiment.base_run or (experiment.folder / "arms.json").exists()):
                    records = read_records(experiment.data, experiment.curricula(), experiment.seed, experiment.folder)
                    ray_comes.begin()
                with importing():
                    from trainer import drive, run  # torch and transformers: seconds, while Ray comes up

                prepared = run.prepare(
                    experiment.folder,
                    experiment.data,
                    experiment.model,
                    trainer,
                    experiment.curricula(),
                    experiment.seed,
                    most if use_gpu else 0,
                    experiment.base_run,
                    experiment.models,
                    experiment.starts(),
                    records,
                )
                todo = run.pending(experiment.folder, prepared)
                run.announce(prepared, todo)
                say(
                    f"{least if least == most else f'{least} to {most}'} {'GPU' if use_gpu else 'CPU'} worker(s), {prepared.precision}, ZeRO-{trainer.zero_stage}"
                )
                if prepared.split_documents:
                    say(
                        f"{prepared.split_documents} documents are longer than {prepared.longest} tokens (a row, or the model's positions) and are split"
                    )
                try:
                    if todo and no_ray:
                        drive.train_without_ray(experiment.folder, prepared, trainer, experiment.seed)
                    elif todo:
                        say("starting Ray" if not in_cluster else "using the job's Ray cluster")
                        ray_comes.wait()
                        announce_cluster()
                        drive.train(experiment.folder, prepared, trainer, experiment.seed, (least, most), use_gpu)
                except RunError as error:
                    raise RunError(f"{error} (details: {log}; what is committed stays)") from error
                finally:  # arms that are complete can be examined, whatever became of the others
                    run.write_arms(experiment.folder, experiment.name, prepared, experiment.model, experiment.merges())
            if merges := experiment.merges():
                from trainer.merging.merge import merge_arms

                merge_arms(experiment.folder, merges, prepared.models, experiment.seed)


def _local_gpus() -> int:
    """Without a device file no driver is there, and torch, whose import takes seconds, need not be asked."""
    if not (any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev", name).exists() for name in ("kfd", "dxg"))):
        return 0
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    door(main)
