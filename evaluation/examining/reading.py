"""python -m evaluation reading X.yaml: how passages are best put before the questions of a small model, tried on train questions; the exam is not looked at."""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table

from console import Command, UserError, chatter_to, out, progress, say, tell, write_result
from data.config import DataConfig
from data.load import load_corpus
from data.records import Corpus, Document, Part, Question
from data.rows.framing import template_of
from data.tokens import Encoder, load_tokenizer
from data.wording.begins import Begins, begin
from data.wording.templates import Wording
from evaluation.config import ExamConfig
from evaluation.exam import build_exam, sample, tokenise
from evaluation.score_files import asked_in
from evaluation.sitting import sit

if TYPE_CHECKING:
    from evaluation.engine import Engine
    from evaluation.engines.options import EngineOptions

Connect = Callable[[ExamConfig, bool], "AbstractContextManager[EngineOptions]"]
Setting = dict[str, Any]
"""Overrides below exam.: {"reading": {…}, "retrieval": {…}}."""
LEAD = "Answer the question with a few words of the text."
PROMPTS: list[Setting] = [{"reading": {"lead": lead, "shots": shots}} for shots in (0, 2) for lead in ("", LEAD)]
"""Tried with the right document at hand."""
PASSAGES: list[Setting] = [
    {"retrieval": {"k": k, "passage_tokens": tokens, "overlap_tokens": 16 if tokens else 32}} for k in (1, 3) for tokens in (None, 64)
]
"""Tried with what is found, in the best of the prompts."""


class Asked(NamedTuple):
    """What of an experiment a trial needs; the door reads it."""

    data: DataConfig
    model: str | None
    bos: Begins
    exam: ExamConfig
    folder: Path
    seed: int


def reading_command(argv: list[str], connect: Connect, asked_of: Callable[[str, list[str]], Asked]) -> int:
    args = _parse(argv)
    asked = asked_of(args.file, args.overrides)
    if not asked.model or not Path(asked.model).is_dir():
        raise UserError("model.name: a folder is meant here: a model that can read, as make real-model leaves one")
    trial = on_train(load_corpus(asked.data, asked.seed), args.questions, asked.seed)
    encoder = encoder_of(asked.model, asked.bos)
    log = asked.folder / "logs" / "reading.log"
    say(f"{asked.model}: {len(trial.part('test').questions)} train questions in {len(PROMPTS) + len(PASSAGES)} settings; details: {log}")
    from evaluation.engine import Engine

    with chatter_to(log), connect(asked.exam, args.insecure) as options, Engine(options) as engine:
        found = try_settings(trial, asked.exam, asked.seed, asked.model, encoder, engine, asked.folder / "retrieval")
    if args.json:
        write_result(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def on_train(corpus: Corpus, count: int, seed: int) -> Corpus:
    """Train documents and `count` of their questions as if they were the exam; of the other documents the questions are there to be shown solved."""
    train = corpus.part("train")
    known = {document.id for document in train.documents}
    linked = [question for question in train.questions if question.doc_id in known]
    if not linked:
        raise UserError("the data hold no train questions that are linked to a train document, so there is nothing to try on")
    asked = sample(linked, count, seed)
    owners = {question.doc_id for question in asked}
    rest = [question for question in linked if question.doc_id not in owners]
    return as_exam(train.documents, asked, rest)


def try_settings(
    trial: Corpus, config: ExamConfig, seed: int, path: str, encoder: Encoder, engine: "Engine", folder: Path
) -> dict[str, Any]:
    """{"tried": [{"setting", "mode", "n", "em", "f1"}], "chosen": setting, "bound": {mode: EM}}: the best by F1, which moves in smaller steps than EM."""
    tried: list[dict[str, Any]] = []
    with progress() as bar:
        task = bar.add_task("settings", total=len(PROMPTS) + len(PASSAGES))

        def ask(setting: Setting, modes: Sequence[str]) -> None:
            for mode, score in _sit(trial, with_settings(config, setting), seed, modes, path, encoder, engine, folder).items():
                tried.append({"setting": setting, "mode": mode, **score})
            bar.advance(task)

        for n, prompt in enumerate(PROMPTS):
            ask(prompt, ("closed", "open") if n == 0 else ("open",))
        best = _best(tried, "open")
        for passages in PASSAGES:
            ask({**best["setting"], **passages}, ("retrieval",))
    chosen = _best(tried, "retrieval")
    bound = {"closed": tried[0]["em"], "retrieval": chosen["em"], "open": best["em"]}
    return {"tried": tried, "chosen": chosen["setting"], "bound": bound}


def _best(tried: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    return max((one for one in tried if one["mode"] == mode), key=lambda one: (one["f1"], one["em"]))


def with_settings(config: ExamConfig, setting: Setting) -> ExamConfig:
    changed = {name: getattr(config, name).model_copy(update=values) for name, values in setting.items()}
    return config.model_copy(update={**changed, "documents": 0, "train_questions": 0, "looks": []})


def _sit(
    trial: Corpus, config: ExamConfig, seed: int, modes: Sequence[str], path: str, encoder: Encoder, engine: "Engine", folder: Path
) -> dict[str, dict[str, float]]:
    rows = rows_of(trial, config, seed, modes, path, encoder, engine, folder)
    return {mode: _means(asked_in(rows, "test", mode)) for mode in modes}


def rows_of(
    trial: Corpus, config: ExamConfig, seed: int, modes: Sequence[str], path: str, encoder: Encoder, engine: "Engine", folder: Path,
    advance: Callable[[int], None] = lambda items: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What the model at `path` answers to the questions of `trial`, as it sits an exam; `folder`: for what is looked up."""
    from evaluation.engines.network import read_network
    from evaluation.examining.examine import look_up

    exam = build_exam(trial, config, seed, modes)
    documents = {"train": trial.part("train").documents}
    knowledge = look_up(exam, documents, folder, config.retrieval) if exam.needs_retrieval() else None
    of = read_network(path)
    paper = tokenise(exam, encoder, of.positions, knowledge.found if knowledge else None, of.short)
    engine.open(path, path, paper.max_model_len)
    return sit(exam, paper, engine, encoder.eos_id, advance).rows


def encoder_of(path: str, bos: Begins) -> Encoder:
    """In the wording that the model was trained in."""
    tokenizer = load_tokenizer(path)
    begin(tokenizer, bos)
    return Encoder(tokenizer, Wording(template_of(Path(path))))  # type: ignore[arg-type]


def as_exam(documents: list[Document], asked: list[Question], shown: list[Question]) -> Corpus:
    """Train documents and these of their questions as if they were the exam; the others are there to be shown solved."""
    return Corpus({"train": Part(documents, shown), "test": Part(documents, asked), "replay": Part()})


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {"n": len(rows), **{metric: sum(row[metric] for row in rows) / len(rows) for metric in ("em", "recall", "f1")}}


def _print(found: dict[str, Any]) -> None:
    table = Table("asked", "line", "solved", "k", "passage", "EM %", "recall %", "F1 %", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found["tried"]:
        reading, retrieval = one["setting"].get("reading", {}), one["setting"].get("retrieval", {})
        told = [
            "yes" if reading.get("lead") else "",
            str(reading.get("shots", 0)),
            str(retrieval.get("k", "")),
            str(retrieval.get("passage_tokens") or ""),
        ]
        table.add_row(one["mode"], *told, *(f"{100 * one[metric]:.1f}" for metric in ("em", "recall", "f1")))
    out.print(table)
    bound = ", ".join(f"{mode} {100 * em:.1f} %" for mode, em in found["bound"].items())
    out.print(
        f"On train questions the model answers exactly: {bound}. What it cannot do with the document at hand is no fault of retrieval.",
        soft_wrap=True,
    )
    reading, retrieval = found["chosen"]["reading"], found["chosen"]["retrieval"]
    tell(f"exam:\n  reading: {json.dumps(reading)}\n  retrieval: {json.dumps(retrieval)}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Command("python -m evaluation reading", description=__doc__)
    parser.takes_experiment("data.root=DIR", about="an experiment whose model is a folder")
    parser.add_argument("--questions", type=int, default=40, metavar="N", help="train questions to try on (40)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--insecure", action="store_true", help="use a cluster of several nodes that has no token authentication")
    return parser.parse_intermixed_args(argv)
