"""python -m data build …: from a folder of files to questions and an experiment that is ready to run."""

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from console import UserError, chatter_to, say, write_result
from data.build import output
from data.build.arguments import STUDENT, add_arguments
from data.build.asking.exchange import Answers
from data.build.asking.generate import Spent
from data.build.asking.methods import parts_of
from data.build.asking.prompts import load_prompts
from data.build.crews import asked_by, asking_of, check_asked, writers_of
from data.build.estimate import Estimate, estimate, total
from data.build.making.account import Account
from data.build.making.near import Benchmarks
from data.build.making.questions import (
    NOT_KNOWN_YET,
    ORDER,
    Building,
    Made,
    all_rows,
    check_requests,
    collect,
    drop_checked,
    settle,
    split_of,
    to_ask,
)
from data.build.making.reading import Reading, ReadOptions, read_folder
from data.build.making.rewrites import examined, refuse_exam, to_write
from data.build.making.splits import SplitName, split_units
from data.build.making.wordings import FILE, Ask, Original, first_requests, make_wordings, write_file
from data.build.making.written import Written, write_rewrites
from data.build.sheet import write_sheet
from data.build.show import print_account, print_figures, print_splits
from data.config import Source
from data.ground.formats import ENDINGS, format_of
from data.readers import read_source
from data.records import Document, Refusal

Connect = Callable[..., AbstractContextManager[None]]
"""cluster.connect.connected: the door's, for rooms do not import each other."""

_OURS = {"answers", "work", output.MANIFEST, "left_out.jsonl", "build.log"}


def add_build(commands: Any, connect: Connect, gpu_gib_here: Callable[[], float]) -> None:
    """The command's arguments, and the command."""
    add_arguments(commands).set_defaults(run=lambda args: _build(args, connect, gpu_gib_here))


def _build(args: argparse.Namespace, connect: Connect, gpu_gib_here: Callable[[], float]) -> None:
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder")
    _check(args)
    benchmarks = _benchmarks(args.benchmark)
    columns = dict(_column(text) for text in args.column)
    options = ReadOptions(args.include, args.exclude, columns, args.characters, args.near)
    if args.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            _dry_run(args, options, benchmarks, Path(scratch))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with Account(args.out) as account:
        reading = read_folder(args.folder, args.out, options, account, benchmarks)
        splits = split_units(reading.units, args.split, args.test_share, args.validation_share, args.seed)
        say(_read_in_words(reading, splits))
        with chatter_to(args.out / "build.log"), nullcontext() if args.no_ray else connect(cpus_needed=args.workers):
            gpu_gib = 0.0 if args.no_ray else gpu_gib_here()
            asking = asking_of(args, gpu_gib)
            answers = Answers(args.out / "answers")
            build = Building(reading, splits, asking, answers, account, benchmarks)
            spent = Spent(allowed=_told(args, _estimate(args, build), answers))
            ask = asked_by(args, asking, gpu_gib, answers, spent)
            (args.out / output.MANIFEST).unlink(missing_ok=True)  # from here on, until all is written, this is no finished build
            made = _questions(args, build, ask)
            wordings = _wordings(args, build, ask, made)
            written = _written(args.out, build, ask, made)
        levels = settle(made, account)
    _write(args, build, options, made, levels, written, wordings, int(gpu_gib > 0), spent)


def _questions(args: argparse.Namespace, build: Building, ask: Ask) -> Made:
    """Asks, asks again where the reply was no good, reads, filters, checks."""
    declined: dict[str, str] = {}
    for attempt in range(args.tries):
        declined |= ask(to_ask(build, attempt), "write", "questions" if attempt == 0 else "asked again")
    made = collect(build, declined)
    for wanted, with_document, what in ((args.drop_known, False, "asked alone"), (args.drop_unanswerable, True, "asked with document")):
        if wanted:
            ask(check_requests(build, made, with_document), "check", what)
            drop_checked(build, made, with_document)
    return made


def _wordings(args: argparse.Namespace, build: Building, ask: Ask, made: Made) -> dict[str, int]:
    """Questions in other words, those of the exam and of validation first; how many of each split."""
    (args.out / FILE).unlink(missing_ok=True)
    number = {split: args.train_wordings if split == "train" else args.wordings for split in ORDER}
    if not any(number.values()):
        return {}
    titles = {document.id: document.title for document in build.reading.documents()}
    originals = [
        Original(row["id"], split, row["question"], row["answers"][0], titles.get(row["doc_id"]), number[split])
        for split in ORDER
        for row in made.rows[split]
        if number[split]
    ]
    writers = writers_of(args, build.asking)
    taken = [row["question"] for row in all_rows(made)]
    rows = make_wordings(originals, taken, writers, build.answers, ask, args.tries, build.account, build.benchmarks)
    write_file(args.out / FILE, rows)
    return {split: sum(len(row["wordings"]) for row in rows if row["split"] == split) for split in ORDER}


def _written(out: Path, build: Building, ask: Ask, made: Made) -> Written:
    """What is written beside the questions, after those that some of it is written around: lists first, then what follows from them."""
    refuse_exam(build.asking, examined(made), build.benchmarks)
    declined: dict[str, str] = {}
    for lists in (True, False):
        for attempt in range(build.asking.tries if build.asking.parts else 0):
            what = ("lists" if lists else "rewrites") if attempt == 0 else "written again"
            declined |= ask(to_write(build, made, attempt, lists), "write", what)
    return write_rewrites(out, build, made, declined)


def _estimate(args: argparse.Namespace, build: Building) -> dict[str, Estimate]:
    """By what is asked for. Of rewrites around questions, and of other wordings, as many as there may be questions."""
    unknown = (
        Original(f"{document.id}{n}", split, NOT_KNOWN_YET * 4, NOT_KNOWN_YET, None, number)
        for document in build.reading.documents()
        if (number := args.train_wordings if (split := split_of(document, build.splits)) == "train" else args.wordings)
        for n in range(args.questions)
    )
    asking, answers = build.asking, build.answers
    found = {
        "questions": estimate(to_ask(build, 0), answers, asking),
        "wordings": estimate(first_requests(unknown, writers_of(args, asking)), answers, asking),
    }
    for method in dict.fromkeys(part.method for part in asking.parts):
        alone = replace(build, asking=replace(asking, parts=tuple(part for part in asking.parts if part.method == method)))
        wanted = (to_write(alone, None, 0, lists) for lists in (True, False))
        found[method] = estimate(chain.from_iterable(wanted), answers, asking)
    return {what: one for what, one in found.items() if one.requests or one.answered}


def _told(args: argparse.Namespace, found: dict[str, Estimate], answers: Answers) -> int | None:
    """Says what will be asked and cost, by what it is for; the tokens of the budget that are left. UserError where these are too few."""
    for what, one in found.items() if len(found) > 1 else ():
        say(f"{what}: {one.in_words(args.price)}")
    whole = total(found.values())
    say(whole.in_words(args.price))
    return whole.within(args.budget, answers)


def _dry_run(args: argparse.Namespace, options: ReadOptions, benchmarks: Benchmarks | None, scratch: Path) -> None:
    with Account(scratch) as account:
        reading = read_folder(args.folder, scratch, options, account, benchmarks, skip=args.out)
    splits = split_units(reading.units, args.split, args.test_share, args.validation_share, args.seed)
    answers = Answers(args.out / "answers")
    found = _estimate(args, Building(reading, splits, asking_of(args, 0), answers, account, benchmarks))
    if args.json:
        total(found.values()).within(args.budget, answers)
        about = {"account": account.as_dict(), "statistics": reading.statistics(), "splits": _split_sizes(reading, splits)}
        by = {what: asdict(one) for what, one in found.items()}
        write_result(json.dumps({**about, "estimate": asdict(total(found.values())), "estimates": by}, ensure_ascii=False, indent=1))
        return
    print_account(account.as_dict())
    say(_read_in_words(reading, splits))
    _told(args, found, answers)


def _write(
    args: argparse.Namespace,
    build: Building,
    options: ReadOptions,
    made: Made,
    levels: dict[str, dict[str, int]],
    written: Written,
    wordings: dict[str, int],
    gpus: int,
    spent: Spent,
) -> None:
    reading, asking, account = build.reading, build.asking, build.account.as_dict()
    name = args.name or re.sub(r"[^A-Za-z0-9._-]+", "-", args.out.resolve().name).strip("-._") or "built"
    counts = output.write_records(args.out, reading, build.splits, made)
    for split, number in written.documents.items():
        counts[split] |= {"rewrites": number, "asked": written.questions[split]}
    for split, number in wordings.items():
        counts[split]["wordings"] = number
    write_sheet(args.out, name, reading, made, account, args.seed)
    empty = [split for split in ("train", "test") if not counts[split].get("questions")]
    experiments = [] if empty else output.write_experiments(args.out, name, args.student or (STUDENT if gpus else None), gpus, counts)
    about = {
        "options": {**asdict(options), "split": args.split, "test_share": args.test_share, "validation_share": args.validation_share},
        "seed": args.seed,
        "model": asking.model,
        "checker": asking.checker,
        "prompts": {"name": args.prompts, "digest": asking.prompts.digest(), "texts": asking.prompts.model_dump()},
        "documents_sha256": reading.sha256,
        "statistics": reading.statistics(),
        "account": account,
        "splits": counts,
        "levels": levels,
        "methods": {f"{part.method}/{part.way}": {"times": part.times, "prompt": part.digest()} for part in asking.parts},
        "figures": written.figures,
        "tokens": {"prompt": made.prompt_tokens, "answer": made.answer_tokens},
    }
    output.write_manifest(args.out, about)
    if args.json:
        write_result(json.dumps({**about, "spent": asdict(spent)}, ensure_ascii=False, indent=1))
    else:
        print_account(account)
        print_splits(counts, levels)
        print_figures(written.figures)
    say(f"look through {args.out / 'samples.html'} before you train; what was left out, and why: {args.out / 'left_out.jsonl'}")
    if empty:
        raise UserError(
            f"no question is left for {' and '.join(empty)}, so there is no experiment; the reasons stand above, try a stronger --model"
        )
    if warning := output.few_questions(counts["test"]["questions"]):
        say(f"warning: {warning}")
    say(f"next: python -m data plan {experiments[0]}; python -m trainer {experiments[0]}")


def _check(args: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    parts_of(args.method, args.texts, args.paraphrases, args.rewrites, load_prompts(args.prompts))
    if args.test_share + args.validation_share >= 1 or args.test_share == 0:
        raise UserError("--test-share and --validation-share: the exam needs a share above 0, and training what is left of 1")
    check_asked(args)
    folder, into = args.folder.resolve(), args.out.resolve()
    if folder == into or folder.is_relative_to(into):
        raise UserError(f"--out {args.out}: holds the folder that is read; give another place")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file")
    if args.out.is_dir() and (names := {path.name for path in args.out.iterdir()}) and not names & _OURS:
        raise UserError(f"--out {args.out}: holds other files, e.g. {sorted(names)[0]}; give a new folder, or one that a build has made")
    rewords = args.wordings or args.train_wordings
    if args.checker and not (args.drop_known or args.drop_unanswerable or (rewords and not args.unchecked)):
        raise UserError("--checker is for --drop-known, --drop-unanswerable and --wordings")
    if args.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise UserError(f"--name {args.name}: letters, digits, dots, dashes and underscores only")


def _column(text: str) -> tuple[str, str]:
    field, equals, column = text.partition("=")
    if not equals or field not in ("text", "title", "date", "domain", "url") or not column:
        raise UserError(f"--column {text}: expected FIELD=COLUMN with text, title, date, domain or url, e.g. text=body")
    return field, column


def _benchmarks(paths: list[Path]) -> Benchmarks | None:
    """Raises UserError at the first bad row."""
    texts: list[str] = []
    for path in paths:
        if not format_of(path.name):
            raise UserError(f"--benchmark {path}: expected {', '.join(ENDINGS)} with a column question")
        source = Source(path=path.name, split="test", holds="questions")
        for row in read_source(source, path.parent, Counter()):
            if isinstance(row, Refusal):
                raise UserError(str(row))
            assert not isinstance(row.record, Document)
            texts.append(row.record.question)
    return Benchmarks(texts) if paths else None


def _split_sizes(reading: Reading, splits: dict[str, SplitName]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for unit in reading.units:
        sizes[splits[unit.name]] += unit.documents
    return {split: sizes[split] for split in ORDER}


def _read_in_words(reading: Reading, splits: dict[str, SplitName]) -> str:
    about = reading.statistics()
    sizes = ", ".join(f"{split} {number:,}" for split, number in _split_sizes(reading, splits).items())
    languages = ", ".join(f"{name} {number:,}" for name, number in list(about["languages"].items())[:4])
    return f"{about['documents']:,} documents of {about['pages']:,} pages (half of them over {about['length']['p50']:,} characters; {languages}): {sizes}"
