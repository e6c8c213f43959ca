"""The words that `python -m data build` understands."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from console import positive, whole
from data.build.asking.methods import known_methods
from data.build.asking.prompts import MOST, known_prompts
from data.build.making.chunks import CHARACTERS
from data.build.making.near import NEAR
from data.build.making.splits import By

_EXAMPLES = """examples:
  python -m data build docs/ --out built --dry-run --price 0.15 0.60
      what would be read, how it would be split, what it would cost; asks no model, writes nothing
  python -m data build docs/ --out built --method spa --method qa --texts 2 --dry-run --price 0.15 0.60 --budget 50000000
      also study texts in seven forms and more questions: what they would take; refused where the budget is too small
  python -m data build docs/ --out built
      a local model writes the questions (vLLM; --model NAME, ungated Qwen2.5 by default)
  STUDYHALL_API_KEY=… python -m data build docs/ --out built --endpoint https://HOST/v1 --model NAME
      any OpenAI-compatible endpoint
  then: look through built/samples.html; python -m data plan built/experiment.yaml; python -m trainer built/experiment.yaml

The same command goes on where it stopped: no question is asked a model twice.
exit code: 0 good, 1 the model failed, 2 bad input (one line says where, why, and what to do)"""

GENERATORS = {76: "32B", 38: "14B", 20: "7B", 8: "1.5B", 0: "0.5B"}
"""Sizes of Qwen2.5-Instruct, ungated and Apache-licensed, by the least GiB of one GPU: bf16 weights of 2 bytes a parameter, and room for the
cache of some dozens of requests. 0: no GPU."""
STUDENT = "Qwen/Qwen2.5-7B"
KEY = "STUDYHALL_API_KEY"


def generator_for(gpu_gib: float) -> str:
    """The default writer of questions where one GPU has so much memory."""
    return f"Qwen/Qwen2.5-{next(size for least, size in GENERATORS.items() if gpu_gib >= least)}-Instruct"


def add_arguments(commands: Any) -> argparse.ArgumentParser:
    """The command's parser; what it runs is the caller's to set."""
    about = "Reads a folder, cuts it into documents, has a model write questions, filters them, splits them without leaks."
    build: argparse.ArgumentParser = commands.add_parser(
        "build", help="from a folder of files to questions and an experiment", description=about, epilog=_EXAMPLES
    )
    build.add_argument("folder", type=Path, metavar="FOLDER")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes; the same DIR goes on")
    build.add_argument("--dry-run", action="store_true", help="read, split and estimate; ask nothing and write nothing")
    build.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    _add_reading(build.add_argument_group("what is read"))
    _add_splits(build.add_argument_group("splits"))
    _add_model(build.add_argument_group("who writes the questions"))
    return build


def _add_reading(group: Any) -> None:
    group.add_argument("--include", action="append", default=[], metavar="GLOB", help="only these (patterns as in .gitignore)")
    group.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="not these")
    group.add_argument("--column", action="append", default=[], metavar="FIELD=COLUMN", help="of tables, e.g. text=body")
    group.add_argument("--characters", type=whole(200), default=CHARACTERS, metavar="N", help=f"longest document ({CHARACTERS})")
    group.add_argument(
        "--near", type=_share, default=NEAR, metavar="S", help=f"similarity from which documents are the same ({NEAR}); 1: equal"
    )
    group.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="questions (a table) that nothing may overlap with",
    )


def _add_splits(group: Any) -> None:
    group.add_argument("--split", choices=get_args(By), default="document", help="what is kept apart (document)")
    group.add_argument("--test-share", type=_share, default=0.2, metavar="S", help="of documents, whose questions are the exam (0.2)")
    group.add_argument("--validation-share", type=_share, default=0.1, metavar="S", help="to choose a curriculum on (0.1); 0: none")
    group.add_argument("--seed", type=int, default=0, metavar="N")


def _add_model(group: Any) -> None:
    group.add_argument(
        "--prompts", default="pit", metavar="NAME", help=f"{', '.join(known_prompts())}, or a file like data/build/asking/prompts/pit.yaml"
    )
    group.add_argument("--questions", type=whole(1), default=MOST, metavar="N", help=f"at most, of each document ({MOST})")
    add_asker(group)
    group.add_argument("--drop-known", action="store_true", help="also ask every question alone; leave out what the model answers")
    group.add_argument("--drop-unanswerable", action="store_true", help="also ask it after its document; leave out what it cannot answer")
    group.add_argument("--paraphrases", type=whole(0), default=0, metavar="N", help="of every document, as more documents (0)")
    group.add_argument(
        "--rewrites",
        type=_up_to(100, "ratio"),
        default=0.0,
        metavar="R",
        help="of train documents around a question, for each train question (0); 1: as many",
    )
    group.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME",
        help=f"also write of every document: {', '.join(known_methods())}, or a file like data/build/asking/methods/spa.yaml; may be repeated",
    )
    group.add_argument("--texts", type=whole(1), default=1, metavar="N", help="so many times what a method writes of a document (1)")
    group.add_argument(
        "--budget",
        type=whole(1),
        metavar="TOKENS",
        help="read and written, of all that DIR has cost; more is refused before anything is asked",
    )
    add_wordings(group, 0)
    group.add_argument(
        "--student", metavar="NAME", help=f"model of the experiment; default: {STUDENT} where there are GPUs, else a tiny one"
    )
    group.add_argument("--name", metavar="NAME", help="of the experiment; default: from DIR")


def add_wordings(group: Any, number: int) -> None:
    """number: how many of an exam question unless said otherwise."""
    group.add_argument(
        "--wordings", type=whole(0), default=number, metavar="N", help=f"other wordings of every exam question, never trained ({number})"
    )
    group.add_argument(
        "--train-wordings",
        type=whole(0),
        default=0,
        metavar="N",
        help="other wordings of every train question, for a stage's wordings (0)",
    )
    group.add_argument("--unchecked", action="store_true", help="do not ask the model whether a wording still asks the same")


def add_asker(group: Any) -> None:
    """Who is asked, and how."""
    group.add_argument("--model", metavar="NAME", help="hub id or folder for vLLM, or the endpoint's name of it")
    group.add_argument("--revision", metavar="REV", help="of the hub id")
    group.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible one, …/v1, instead of vLLM here")
    group.add_argument("--key-file", type=Path, metavar="FILE", help=f"holds the endpoint's key; or the variable {KEY}")
    group.add_argument(
        "--extra-body", metavar="JSON", help='more fields of every request, e.g. {"chat_template_kwargs": {"enable_thinking": false}}'
    )
    group.add_argument("--parallel", type=whole(1), default=8, metavar="N", help="requests a worker has on their way to the endpoint (8)")
    group.add_argument("--workers", type=whole(1), default=1, metavar="N", help="Ray workers: engines, or endpoint clients (1)")
    group.add_argument("--no-ray", action="store_true", help="ask from this process alone, for a small folder and an endpoint")
    group.add_argument("--gpus", type=whole(0), metavar="N", help="of each engine (tensor parallel); default: 1 where there are any")
    group.add_argument("--max-model-len", type=whole(64), metavar="N", help="tokens of prompt and answer; default: from --characters")
    group.add_argument("--tries", type=whole(1), default=2, metavar="N", help="times something is asked until the reply is usable (2)")
    group.add_argument("--price", type=_price, nargs=2, metavar=("IN", "OUT"), help="per million tokens, for the estimate")
    group.add_argument("--checker", metavar="NAME", help="the model that checks (the writer), e.g. the one that will be trained")


def _price(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def _up_to(most: float, what: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: expected a {what} from 0 to {most:g}")
        return value

    return number


_share = _up_to(1, "share")
