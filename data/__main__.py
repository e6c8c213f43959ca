"""python -m data check …: reads an experiment's data (or one file) and says what was used, what not, and why. Also: plan, build, wordings, show."""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from cluster.connect import connected, gpu_gib_here
from cluster.workload import planned_of
from console import Command, UserError, door, out, say, tell, write_result
from data.build.command import add_build
from data.build.show import add_show
from data.build.wordings_command import add_rewordings
from data.config import DataConfig, Source
from data.corpus.golds import unreachable
from data.ground.formats import SAVED_AS, Format, format_of
from data.load import load_corpus
from data.planning.plan_command import Planned, add_plan
from data.records import Corpus, Intake, OverlapReport, Part
from experiment import load_experiment, located
from experiment_files import check_files, check_tokens

_CHECK_EXAMPLES = """examples:
  python -m data check experiments/bios_cpu.yaml
      every source of an experiment: rows read, used, left out; links; what the exam shares with training
  python -m data check experiments/my.yaml data.root=/srv/films data.bad_rows=quarantine --quarantine bad.jsonl
      sets bad rows aside in bad.jsonl, each with path:line and reason, instead of stopping at the first
  python -m data check films.jsonl --holds documents --column id=wiki_id --column text=body
      one file without an experiment; the column names of the file are on the right

exit code: 0 good, 2 bad input (one line says where, why, and what to do)"""


def main(argv: list[str] | None = None) -> int | None:
    parser = Command(
        "python -m data",
        description="Documents and questions: check them, see what will be trained on them, or make them from a folder of files.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_check(commands)
    add_plan(commands, _planned)
    add_build(commands, connected, gpu_gib_here)
    add_rewordings(commands, _data_of, connected, gpu_gib_here)
    add_show(commands)
    return parser.run(argv)


def _planned(file: str, overrides: list[str]) -> Planned:
    experiment = load_experiment(file, overrides)
    with located(file):
        check_files(experiment, networks=True)
        planned = planned_of(experiment)
        check_tokens(experiment, planned.lengths.largest())
    return planned


def _data_of(file: str, overrides: list[str]) -> tuple[DataConfig, int]:
    experiment = load_experiment(file, overrides)
    return experiment.data, experiment.seed


def _add_check(commands: Any) -> None:
    about = "Reads all data of an experiment, or one file, and accounts for every row."
    check = commands.add_parser("check", help="read all data and account for every row", description=about, epilog=_CHECK_EXAMPLES)
    check.add_argument("file", metavar="FILE", help="an experiment (.yaml), or one file of records")
    check.takes_overrides("data.root=DIR")
    check.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    check.add_argument(
        "--quarantine", type=Path, metavar="OUT.jsonl", help="go on after bad rows and write all rows that are not used here"
    )
    single = check.add_argument_group("one file without an experiment")
    single.add_argument("--holds", choices=get_args(Source.model_fields["holds"].annotation), help="what a row is")
    single.add_argument("--format", choices=get_args(Source.model_fields["format"].annotation), help="default: from the file's ending")
    single.add_argument(
        "--column", action="append", default=[], metavar="FIELD=COLUMN", help="our field from another column, e.g. id=wiki_id"
    )
    single.add_argument("--numbers", choices=("refuse", "text"), default="refuse", help="what a number is where a text is meant (refuse)")
    single.add_argument("--configuration", metavar="SHEET", help="which sheet of a workbook, where several have rows")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> None:
    if Path(args.file).suffix in (".yaml", ".yml"):
        if args.holds or args.format or args.column or args.configuration or args.numbers != "refuse":
            raise UserError(
                "--holds, --format, --column, --configuration and --numbers are for one file of records; an experiment says them in data.sources"
            )
        experiment = load_experiment(args.file, args.overrides)
        with located(args.file):
            check_files(experiment, networks=True)
        config, seed, answer_tokens = experiment.data, experiment.seed, experiment.exam.answer_tokens
        if args.quarantine:
            config = config.model_copy(update={"bad_rows": "quarantine"})
    else:
        config, seed, answer_tokens = _single_file(args), 0, 0
    corpus = load_corpus(config, seed, args.quarantine)
    golds = unreachable(corpus.part("test").questions, answer_tokens)
    if args.json:
        write_result(json.dumps({**account(corpus), "unreachable": golds.as_dict()}, ensure_ascii=False, indent=2))
    else:
        _print(corpus)
        if line := golds.in_words():
            tell(line)
    if args.quarantine and any(intake.refused for intake in corpus.intakes):
        say(f"rows that are not used: {args.quarantine}")


def _single_file(args: argparse.Namespace) -> DataConfig:
    """An experiment's data section for one file. With --quarantine any share of bad rows may be looked at."""
    path = Path(args.file)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one file of records, or an experiment (.yaml)")
    if args.overrides:
        raise UserError(f"{args.overrides[0]}: overrides belong to an experiment (.yaml), and {path.name} is a file of records")
    if not args.holds:
        raise UserError(f"{path.name}: say what a row is with --holds documents (or questions, choices, both)")
    chosen = args.format or format_of(path.name)
    if remedy := SAVED_AS.get(path.suffix.lower()):
        raise UserError(f"{path.name}: no reader for {path.suffix}; {remedy}")
    if not chosen:
        raise UserError(f"{path.name}: say how it is written with --format ({', '.join(get_args(Format))})")
    columns = dict(_column(text) for text in args.column)
    known = {"path": path.name, "split": "train", "holds": args.holds, "format": chosen, "columns": columns, "numbers": args.numbers}
    known["configuration"] = args.configuration
    source = Source.model_validate(known)
    return DataConfig(root=str(path.parent), sources=[source], bad_rows="quarantine" if args.quarantine else "fail", bad_rows_limit=1.0)


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not equals or not field or not column:
        raise UserError(f"--column {text}: expected FIELD=COLUMN, e.g. id=wiki_id")
    return field, column


def account(corpus: Corpus) -> dict[str, Any]:
    """What the tables say, as plain values: sources, splits, overlap."""
    return {
        "sources": [_source_account(intake) for intake in corpus.intakes],
        "splits": {split: _linkage(part) for split, part in corpus.parts.items()},
        "overlap": asdict(corpus.overlap) if corpus.overlap else None,
    }


def _source_account(intake: Intake) -> dict[str, Any]:
    by_rule = sum(refusal.by_rule for refusal in intake.refused)
    return {
        "source": intake.source,
        "read": intake.rows_read,
        "used": intake.rows_used,
        "bad": len(intake.refused) - by_rule,
        "left_out_by_rule": by_rule,
        "notes": intake.notes,
        "refused": [asdict(refusal) for refusal in intake.refused],
    }


def _linkage(part: Part) -> dict[str, Any]:
    """How questions hang on documents. `questions_per_document` is over the documents that have any."""
    doc_ids = [question.doc_id for question in part.questions] + [question.doc_id for question in part.choices]
    linked = [doc_id for doc_id in doc_ids if doc_id is not None]
    asked = set(linked)
    return {
        "documents": len(part.all_documents()),
        "questions": len(part.questions),
        "choices": len(part.choices),
        "questions_per_document": round(len(linked) / len(asked), 2) if asked else 0.0,
        "documents_without_questions": sum(document_id not in asked for document_id in part.document_ids()),
        "questions_without_document": len(doc_ids) - len(linked),
    }


def _print(corpus: Corpus) -> None:
    from rich.table import Table  # not above: a Python without it is told so by console

    sources = Table("source", "read", "used", "bad", "by rule", "notes", title="Rows")
    for intake in corpus.intakes:
        row = _source_account(intake)
        notes = "\n".join(f"{what}: {n}" for what, n in [*intake.notes.items(), *_reasons(intake).items()])
        sources.add_row(*map(str, (row["source"], row["read"], row["used"], row["bad"], row["left_out_by_rule"])), notes)
    out.print(sources, markup=False)
    names = ["documents", "questions", "choices", "questions_per_document", "documents_without_questions", "questions_without_document"]
    splits = Table("split", *(name.replace("_", " ") for name in names), title="Links")
    for split, part in corpus.parts.items():
        linkage = _linkage(part)
        splits.add_row(split, *(str(linkage[name]) for name in names))
    out.print(splits, markup=False)
    if corpus.overlap:
        _print_overlap(corpus.overlap)


def _reasons(intake: Intake) -> dict[str, int]:
    """Refusals by the first words of their reason: without ids, places and quotations."""
    reasons: dict[str, int] = {}
    for refusal in intake.refused:
        reason = "left out: " + re.split(r" at |: | \(| '", refusal.reason)[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def _print_overlap(overlap: OverlapReport) -> None:
    num_questions, num_documents = len(overlap.question_ids), len(overlap.document_ids)
    if not num_questions and not num_documents:
        out.print("Exam and training share no text.", markup=False)
        return
    out.print(
        f"Also in training: {num_questions} exam questions ({overlap.same_answer} with an accepted answer), "
        f"{num_documents} exam documents; policy {overlap.policy}; dropped: {overlap.dropped or 'nothing'}",
        markup=False,
    )
    for example in overlap.examples:
        tell(f"  {example}")


if __name__ == "__main__":
    door(main)
