"""python -m data wordings X.yaml: the questions of an experiment in other words, kept beside its set (data/corpus/wordings.py)."""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from console import UserError, chatter_to, say, write_result
from data.build.arguments import add_asker, add_wordings
from data.build.asking.exchange import Answers
from data.build.asking.generate import Spent
from data.build.crews import asked_by, asking_of, check_asked, writers_of
from data.build.estimate import estimate
from data.build.making.account import Account
from data.build.making.wordings import FILE, SPARE, Original, first_requests, make_wordings, write_file
from data.build.show import print_account
from data.config import DataConfig
from data.load import load_corpus
from data.records import Corpus

Connect = Callable[..., AbstractContextManager[None]]
DataOf = Callable[[str, list[str]], tuple[DataConfig, int]]
"""The experiment's data and seed: the door's, for this room knows no experiments."""

_NUMBER = 4
_CHARACTERS = 1000
"""Of a question with its answer: no longer one is expected."""
_NOTHING_ELSE = {"prompts": "pit", "characters": _CHARACTERS, "seed": 0, "method": [], "texts": 1, "paraphrases": 0, "rewrites": 0}
"""Of a build's options, which a rewording has not."""
_EXAMPLES = """examples:
  python -m data wordings experiments/wiki2023_qwen_7b.yaml data.root=DIR --out DIR/wordings
      a local model (vLLM; --model NAME) writes four other wordings of every exam question, and checks that they ask the same
  STUDYHALL_API_KEY=… python -m data wordings X.yaml --out DIR --train-wordings 3 --endpoint https://HOST/v1 --model NAME
      also three of every train question, for a stage's `wordings: 4`
  then: python -m trainer X.yaml data.wordings=DIR/wordings.jsonl 'exam.looks=[wordings]'

The same command goes on where it stopped: nothing is asked a model twice.
exit code: 0 good, 1 the model failed, 2 bad input (one line says where, why, and what to do)"""


def add_rewordings(commands: Any, data_of: DataOf, connect: Connect, gpu_gib_here: Callable[[], float]) -> None:
    """The command's arguments, and the command."""
    about = "Has a model write an experiment's questions in other words, checks them by rule and by the model, and keeps them in a file."
    short = "questions in other words, for the exam and for training"
    wordings = commands.add_parser("wordings", help=short, description=about, epilog=_EXAMPLES)
    wordings.takes_experiment("data.root=DIR")
    wordings.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"holds {FILE} and the replies; the same DIR goes on")
    wordings.add_argument("--dry-run", action="store_true", help="read and estimate; ask nothing and write nothing")
    wordings.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    add_wordings(wordings, _NUMBER)
    add_asker(wordings.add_argument_group("who writes"))
    wordings.set_defaults(run=lambda args: _reword(args, data_of, connect, gpu_gib_here), **_NOTHING_ELSE)


def _reword(args: argparse.Namespace, data_of: DataOf, connect: Connect, gpu_gib_here: Callable[[], float]) -> None:
    _check(args)
    data, args.seed = data_of(args.file, args.overrides)
    corpus = load_corpus(data.model_copy(update={"wordings": None}), args.seed)
    originals = originals_of(corpus, args.wordings, args.train_wordings)
    if not originals:
        raise UserError(f"{args.file}: no questions to reword; --wordings is of the exam's, --train-wordings of those that are trained")
    args.questions = max(args.wordings, args.train_wordings) + SPARE
    answers = Answers(args.out / "answers")
    if args.dry_run:
        asking = asking_of(args, 0)
        say(estimate(first_requests(originals, writers_of(args, asking)), answers, asking).in_words(args.price))
        return
    (args.out / "work").mkdir(parents=True, exist_ok=True)
    with (
        chatter_to(args.out / "wordings.log"),
        nullcontext() if args.no_ray else connect(cpus_needed=args.workers),
        Account(args.out) as account,
    ):
        gpu_gib = 0.0 if args.no_ray else gpu_gib_here()
        asking, spent = asking_of(args, gpu_gib), Spent()
        writers = writers_of(args, asking)
        say(estimate(first_requests(originals, writers), answers, asking).in_words(args.price))
        ask = asked_by(args, asking, gpu_gib, answers, spent)
        taken = [question.question for part in corpus.parts.values() for question in part.questions]
        rows = make_wordings(originals, taken, writers, answers, ask, args.tries, account)
    _finish(args, rows, account.as_dict(), len(originals))


def originals_of(corpus: Corpus, of_exam: int, of_training: int) -> list[Original]:
    """The exam's first: what is theirs is not trained. A question that stands twice is reworded once."""
    titles = {document.id: document.title for part in corpus.parts.values() for document in part.documents}
    found: dict[str, Original] = {}
    for split, number in (("test", of_exam), ("train", of_training), ("replay", of_training)):
        for q in corpus.part(split).questions if number else ():  # type: ignore[arg-type]
            found.setdefault(q.question, Original(q.id, split, q.question, q.answers[0], titles.get(q.doc_id or ""), number))
    return list(found.values())


def _finish(args: argparse.Namespace, rows: list[dict[str, Any]], account: dict[str, Any], asked: int) -> None:
    write_file(args.out / FILE, rows)
    if args.json:
        write_result(json.dumps({"account": account, "questions": asked, "reworded": len(rows)}, ensure_ascii=False, indent=1))
    else:
        print_account(account)
    say(
        f"{len(rows):,} of {asked:,} questions have other wordings: {args.out / FILE}; what was left out, and why: {args.out / 'left_out.jsonl'}"
    )
    say(f"next: python -m trainer {args.file} data.wordings={(args.out / FILE).resolve()} 'exam.looks=[wordings]'")


def _check(args: argparse.Namespace) -> None:
    check_asked(args)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file")
    if args.unchecked and args.checker:
        raise UserError("--checker is for wordings that are checked; leave out --unchecked")
