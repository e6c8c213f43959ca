"""python -m evaluation X.yaml: examine what has no score yet, write the report, print the comparison. Also: seeds, examine, ask."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import Command, RunError, UserError, chatter_to, door, out, say, tell, write_result
from data.corpus.validation import without_validation
from data.ground.durable import write_text
from data.load import load_corpus
from data.records import Corpus
from data.rows.framing import framing_of
from evaluation.asking.question_files import read_questions
from evaluation.config import ExamConfig
from evaluation.exam import Exam, build_exam
from evaluation.examining import ask
from evaluation.examining.extras import Extras
from evaluation.examining.own_answers import answers_command
from evaluation.examining.own_texts import write_command
from evaluation.examining.reading import Asked, reading_command
from evaluation.examining.trained import collect
from evaluation.report import sinks
from evaluation.report.alike import read_alike
from evaluation.report.blocks import markdown_blocks
from evaluation.report.changes import changes_markdown, changes_report, rounds_markdown, rounds_report, with_changes
from evaluation.report.merged import merged
from evaluation.report.model_card import model_card
from evaluation.report.page import page
from evaluation.report.render import baseline_lines, markdown, summary, terminal_table
from evaluation.report.report import build_report
from evaluation.report.seeds import main as seeds_command
from evaluation.report.sound import unsound
from evaluation.score_files import TrainedArm, is_scored, read_arms, score_stem, stage_totals, trained_stages
from experiment import Experiment, load_experiment

if TYPE_CHECKING:
    from evaluation.engines.options import EngineOptions
    from evaluation.examining.examine import Knowledge

DESCRIPTION = """\
Examine the trained arms of an experiment and compare them.

Every arm that `python -m trainer X.yaml` left in runs/<name>/ and that has no score yet answers the exam questions
with vLLM: the test questions (never trained on) alone and with retrieved passages, a sample of train questions and of
replay questions; the loss of the test documents is measured too. A table comes on stdout, the rest in runs/<name>/report.html, .md and .json.
What has a score is not examined again, so run it as often as you like: with nothing new it takes a second.
"""
EXAMPLES = """\
examples:
  python -m evaluation experiments/bios_cpu.yaml
  python -m evaluation experiments/bios_cpu.yaml exam.test_questions=100 exam.train_questions=0
  python -m evaluation experiments/bios_cpu.yaml --json | jq .arms.pit.sets.test.em

other commands (each explains itself with -h):
  python -m evaluation seeds RUN RUN …               several seeds of one experiment taken together
  python -m evaluation examine MODEL QUESTIONS.jsonl  any model on any file of questions, no training
  python -m evaluation ask MODEL "question"           one question; with --documents FOLDER also after what is found there
  python -m evaluation write MODEL --out FILE.jsonl   texts of the model's own, for an anchor without replay data
  python -m evaluation answers X.yaml --out FILE.jsonl  a model's own answers to the train questions, with their documents in view
  python -m evaluation reading X.yaml                 which prompt and passages suit a small model, tried on train questions

Settings under exam: are described in evaluation/config.py.
exit codes: 0 done; 1 an arm could not be examined (see runs/<name>/logs/exam.log); 2 bad input
"""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["seeds"]:
        return seeds_command(words[1:])
    if words[:1] == ["examine"]:
        return ask.examine_command(words[1:], _connected)
    if words[:1] == ["answers"]:
        return answers_command(words[1:], _connected, _read_by)
    if words[:1] == ["write"]:
        return write_command(words[1:])
    if words[:1] == ["reading"]:
        return reading_command(words[1:], _connected, _read_by)
    if words[:1] == ["ask"]:
        return ask.ask_command(words[1:], _connected)
    return examine_experiment(words)


def examine_experiment(argv: list[str]) -> int:
    args = _parse(argv)
    experiment = load_experiment(args.experiment, args.overrides)
    reasons: dict[str, str] = {}
    reports, corpora = [], []
    for one in [experiment, *experiment.rounds()]:
        report, why, corpus = _examine_experiment(one, args.insecure)
        reports.append(report)
        corpora.append(corpus)
        reasons |= {f"{one.name} {arm}" if experiment.updates else arm: reason for arm, reason in why.items()}
    if experiment.updates:
        first_arm = (experiment.rounds()[0].base_run or "").rpartition(":")[2]
        reports[0]["rounds"] = rounds_report(reports, first_arm)
    for one, report, corpus in zip([experiment, *experiment.rounds()], reports, corpora, strict=True):
        _write(one.folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
        more = [markdown_blocks(report), changes_markdown(report), rounds_markdown(report["rounds"]) if "rounds" in report else ""]
        _write(one.folder / "report.md", markdown(report, more))
        _write(one.folder / "report.html", page(report))
        _write_cards(report, one, one.folder, corpus)
        sinks.send(report, one.exam.sinks)
        if (known := report["known_before"]) and known["warning"]:
            say(f"note: {known['warning']}")
        say(f"report: {one.folder / 'report.html'}; report.md and report.json beside it")
        if not args.json:
            _print(report, more)
    if args.json:
        write_result(json.dumps(reports[0], indent=1))
    if reasons:
        why_not = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise RunError(f"{len(reasons)} of {sum(len(report['arms']) for report in reports)} arms could not be examined: {why_not}")
    return 0


def _examine_experiment(experiment: Experiment, insecure: bool) -> tuple[dict[str, Any], dict[str, str], Corpus]:
    """The report of one experiment, why arms have no score, and the records."""
    folder, config, seed = experiment.folder, experiment.exam, experiment.seed
    if not folder.is_dir():
        raise UserError(f"no trained arms in {folder}; run python -m trainer X.yaml first")
    sinks.check(config.sinks)
    corpus, changes = with_changes(load_corpus(experiment.data, seed), folder, experiment.base_run)
    arms = read_arms(folder, corpus.fingerprint())
    whole, corpus = corpus, without_validation(corpus, config.validation_share, config.validation_from(seed))
    base_exam, exam = _exams(experiment, corpus)
    exams = {arm.name: base_exam if arm.name == "base" else exam for arm in arms}
    stages = trained_stages(folder, arms) if config.stages == "all" else []
    exams |= {stage.name: exam.closed() for stage in stages}
    stems = {one.name: score_stem(folder, one, exams[one.name].fingerprint(one.template)) for one in [*arms, *stages]}
    by = None if config.engine == "auto" else config.engine
    todo = [one for one in [*arms, *stages] if not is_scored(stems[one.name], by)]
    reasons = {one.name: f"its weights are gone ({one.path}); run python -m trainer again" for one in todo if one.gone}
    reasons |= unsound([one for one in todo if not one.gone], folder)
    if present := [(one, exams[one.name]) for one in todo if one.name not in reasons]:
        reasons |= _examine(present, corpus, folder, config, seed, insecure)
    extras = Extras(arms, corpus, config, folder, seed)
    if extras.todo():
        _measure(extras, folder, config, insecure)
        reasons |= {name: f"{reasons[name]}; {why}" if name in reasons else why for name, why in extras.reasons().items()}
    read = read_alike(stems, by)
    scores = {one.name: read[one.name] for one in arms if one.name in read}
    by_stage = {one.entry["stage"]: read[one.name] for one in stages if one.name in read}
    report = build_report(experiment.name, seed, config, exam, corpus, arms, scores, reasons, by_stage, stage_totals(folder, arms))
    report |= merged(folder, arms, scores, config.resamples, seed)
    report |= {"about": experiment.about, "folder": str(folder), **collect(folder, arms, scores, exam, corpus, seed), **extras.blocks()}
    report["settings"].pop("sinks")  # an address may hold a password
    if changes is not None:
        report["changes"] = changes_report(experiment.base_run or "", changes, scores, config.resamples, seed, config.numbers)
    return report, reasons, whole


def _exams(experiment: Experiment, corpus: Corpus) -> tuple[Exam, Exam]:
    """The base's exam and that of the trained arms: the same questions, the test questions in other modes."""
    config, seed = experiment.exam, experiment.seed
    retention = read_questions(Path(config.retention)) if config.retention else []
    base, arms = (build_exam(corpus, config, seed, modes, retention, experiment.folder) for modes in (config.base_modes, config.modes))
    return base, arms


def _examine(
    todo: list[tuple[TrainedArm, Exam]], corpus: Corpus, folder: Path, config: ExamConfig, seed: int, insecure: bool
) -> dict[str, str]:
    """Starts Ray, the engine and the retriever only here: a rerun with nothing new needs none of them."""
    log = folder / "logs" / "exam.log"
    names = ", ".join(one.name for one, _ in todo)
    say(f"to examine: {names}; {len(todo[0][1].questions)} questions and {len(todo[0][1].documents)} documents each; details: {log}")
    with chatter_to(log):
        from evaluation.engines.gpus import spread
        from evaluation.examining.examine import examine

        knowledge = _look_up(todo, corpus, folder, config)
        with _connected(config, insecure) as options:
            options = spread(options, config.gpus, [one.path for one, _ in todo])
            return examine(todo, folder, seed, options, knowledge)


def _look_up(todo: list[tuple[TrainedArm, Exam]], corpus: Corpus, folder: Path, config: ExamConfig) -> "Knowledge | None":
    """Passages for the test questions, once for all arms; None where no arm needs them."""
    from evaluation.examining.examine import look_up

    if not any(exam.needs_retrieval() for _, exam in todo):
        return None
    documents = {split: corpus.part(split).documents for split in config.retrieval.splits}
    if streamed := [split for split in documents if corpus.part(split).streamed is not None]:
        say(
            f"exam.retrieval: the streamed {' and '.join(streamed)} documents are no part of the knowledge base, so passages are easier to find"
        )
    return look_up(todo[0][1], {split: of for split, of in documents.items() if of}, folder / "retrieval", config.retrieval)


@contextmanager
def _connected(config: ExamConfig, insecure: bool = False) -> "Iterator[EngineOptions]":
    """A running Ray with what the engine needs, and the engine's options."""
    from cluster.connect import connected, gpus_here
    from evaluation.examining.examine import engine_options

    with connected(cpus_needed=1, gpus_needed=config.gpus or 0, insecure=insecure):
        yield replace(engine_options(config, gpus_here()), threads=os.cpu_count() or 1)  # nothing trains beside it


def _read_by(file: str, overrides: list[str]) -> Asked:
    one = load_experiment(file, overrides)
    return Asked(one.data, one.model.name, one.model.bos, one.exam, one.folder, one.seed)


def _measure(extras: Extras, folder: Path, config: ExamConfig, insecure: bool) -> None:
    log = folder / "logs" / "exam.log"
    say(f"benchmarks, multiple choice, conversation; details: {log}")
    with chatter_to(log), _connected(config, insecure) as options:
        extras.run(options)


def _write_cards(report: dict[str, Any], experiment: Experiment, folder: Path, corpus: Corpus) -> None:
    """README.md beside the hf/ of every scored arm that was trained or put together here."""
    base_model = experiment.model.name or "a tiny model, made for this experiment"
    for name, arm in report["arms"].items():
        home = (folder / arm["hf"]).parent
        made_here = arm["stage"] or name in (report.get("merged") or {}).get("arms", {})
        if arm["status"] == "scored" and made_here and home.is_dir():
            hf = folder / arm["hf"]
            _write(home / "README.md", model_card(report, name, base_model, corpus.fingerprint(), str(hf), framing_of(hf)))


def _print(report: dict[str, Any], more: list[str]) -> None:
    """The result's table ends it: what people look for stands where their prompt is."""
    from rich.markdown import Markdown

    if text := "\n\n".join(filter(None, more)):
        out.print(Markdown(text))  # its tables fit the terminal
    for line in [*baseline_lines(report), *report.get("choices", {}).get("findings", [])]:
        tell(line)
    tell(summary(report))
    out.print(terminal_table(report, out.width))


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # a rerun leaves what lies beside committed weights untouched
        write_text(path, text)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Command("python -m evaluation", description=DESCRIPTION, epilog=EXAMPLES)
    about = "the experiment, as given to python -m trainer"
    parser.takes_experiment("exam.answer_tokens=32; repeat those that you trained with", "experiment", about)
    parser.add_argument("--json", action="store_true", help="print report.json instead of the table")
    parser.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    door(main)
