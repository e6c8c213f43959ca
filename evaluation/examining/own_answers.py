"""python -m evaluation answers X.yaml: what a model answers to the train questions with their documents in view, as questions to train (docs/teaching.md).

A teacher's own answers are likelier under it than those of a file, so that following it costs the student less of what it is (arXiv 2412.14964).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from console import Command, RunError, UserError, chatter_to, progress, say
from data.ground.durable import check_new, new_file
from data.load import load_corpus
from data.records import Corpus, Question
from evaluation.examining.reading import Asked, Connect, as_exam, encoder_of, rows_of, with_settings

_HALVES = 2
"""Questions are asked in so many parts, each with solved readings (exam.reading.shots) from the documents of the others: none is shown its own answer."""
_MODES = ("closed", "open")
_EXAMPLES = """\
examples:
  python -m evaluation answers experiments/wiki2023_smollm2.yaml data.root=DIR --out own.jsonl
  python -m evaluation answers experiments/bios_cpu.yaml --model runs/bios-cpu/stages/KEY/hf --out own.jsonl --right

then, in an experiment, in the place of the train questions:
  data: {sources: [{path: own.jsonl, split: train, holds: questions}, …]}
  arms: {taught: {preset: pit, teach: {share: 1.0}}}
"""


def answers_command(argv: list[str], connect: Connect, asked_of: Callable[[str, list[str]], Asked]) -> int:
    args = _parse(argv)
    check_new(args.out)
    asked = asked_of(args.file, args.overrides)
    model = args.model or asked.model
    if not model or not Path(model).is_dir():
        raise UserError(
            f"{model or 'model.name'}: a model's folder is meant here; give --model FOLDER (hf/ of a stage, or what make real-model leaves)"
        )
    corpus = load_corpus(asked.data, asked.seed)
    parts = [(half, rest) for half, rest in _halves(corpus) if half]
    log = asked.folder / "logs" / "answers.log"
    say(f"{model}: {sum(len(half) for half, _ in parts):,} train questions, alone and with their documents in view; details: {log}")
    with chatter_to(log), connect(asked.exam, args.insecure) as options:
        rows = _ask(corpus, parts, asked, model, options)
    whole = [row for row in rows["open"] if is_whole(row)]
    kept = [row for row in whole if row["answer"] and (row["em"] or not args.right)]
    if not kept:
        raise RunError(f"{model}: no answer that could be kept; see what a small model needs with python -m evaluation reading")
    questions = {question.id: question.question for half, _ in parts for question in half}
    with new_file(args.out) as file:
        for row in kept:
            told = {"id": row["question_id"], "question": questions[row["question_id"]], "answer": row["answer"], "doc_id": row["doc_id"]}
            file.write(json.dumps({**told, "gold": row["gold"]}, ensure_ascii=False) + "\n")
    alone, behind = (100 * sum(row["em"] for row in rows[mode]) / len(rows[mode]) for mode in ("closed", "open"))
    if cut := len(rows["open"]) - len(whole):
        say(f"left out: {cut:,} answers that were cut off, or whose document was (exam.answer_tokens, the model's positions)")
    say(
        f"{args.out}: {len(kept):,} of {len(rows['open']):,} answers; as the file has them are {behind:.1f} % (without the document {alone:.1f} %)"
    )
    return 0


def is_whole(row: dict[str, Any]) -> bool:
    """Whether the document was read to its end, and the answer (the first line) was said to its end."""
    return not row["context_cut"] and (row["finish_reason"] != "length" or "\n" in row["output"].strip())


def _halves(corpus: Corpus) -> list[tuple[list[Question], list[Question]]]:
    """(those asked, the others) of the train questions with a document, by document."""
    train = corpus.part("train")
    place = {document.id: n % _HALVES for n, document in enumerate(train.documents)}
    linked = [question for question in train.questions if question.doc_id in place]
    if not linked:
        raise UserError("the data hold no train questions that are linked to a train document, so there is nothing to have in view")
    of = [[question for question in linked if place[question.doc_id or ""] == half] for half in range(_HALVES)]
    return [(of[half], of[1 - half]) for half in range(_HALVES)]


def _ask(
    corpus: Corpus, parts: list[tuple[list[Question], list[Question]]], asked: Asked, model: str, options: Any
) -> dict[str, list[dict[str, Any]]]:
    """The rows of a sitting by mode, closed and open."""
    from evaluation.engine import Engine

    encoder, documents = encoder_of(model, asked.bos), corpus.part("train").documents
    config = with_settings(asked.exam, {}).model_copy(update={"test_questions": None})
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in _MODES}
    with Engine(options) as engine, progress() as bar:
        task = bar.add_task("answers", total=len(_MODES) * sum(len(half) for half, _ in parts))
        for half, rest in parts:
            trial = as_exam(documents, half, rest)
            for row in rows_of(
                trial, config, asked.seed, _MODES, model, encoder, engine, asked.folder, lambda items: bar.advance(task, items)
            ):
                found[row["mode"]].append(row)
    return found


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Command("python -m evaluation answers", description=__doc__, epilog=_EXAMPLES)
    parser.takes_experiment("data.root=DIR", about="an experiment: its train questions and documents")
    parser.add_argument("--model", metavar="FOLDER", help="who answers; default: the experiment's model")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="written whole or not at all")
    parser.add_argument("--right", action="store_true", help="keep only answers that are also the file's, by exact match")
    parser.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    return parser.parse_intermixed_args(argv)
