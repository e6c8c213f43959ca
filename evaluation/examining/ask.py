"""Any model, no training: `examine` puts a file of questions to it, `ask` one question.

Both ask as the exam does: in the wording that the model was trained in here (any other model: --template), greedy, vLLM; with --documents also after what retrieval finds in a folder.
"""

import argparse
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from console import Command, chatter_to, out, say, tell, whole, write_result
from data.ground.model_config import check_name
from data.records import Question
from data.rows.framing import template_of
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import Wording
from evaluation.asking.question_files import read_documents, read_questions
from evaluation.config import ExamConfig, RetrievalConfig
from evaluation.exam import Exam, tokenise
from evaluation.report.findings import hit_rates
from evaluation.scoring.aggregate import set_scores
from evaluation.scoring.scores import METRICS
from evaluation.sitting import Sitting, sit

if TYPE_CHECKING:
    from evaluation.engines.options import EngineOptions
    from evaluation.examining.examine import Knowledge

Connect = Callable[[ExamConfig], "AbstractContextManager[EngineOptions]"]
_FOLDER = Path("runs") / "asked"

EXAMINE = """\
Examine any model on any file of questions, without training: lines of {"question", "answers"}. Prints exact match, recall,
F1 and ROUGE-L with 95 % intervals; --json prints every answer too.
"""
EXAMINE_EXAMPLES = """\
examples:
  python -m evaluation examine runs/bios-cpu/stages/KEY/hf questions.jsonl
  python -m evaluation examine Qwen/Qwen2.5-0.5B questions.jsonl --documents notes/ --json > scores.json
"""
ASK_EXAMPLES = """\
examples:
  python -m evaluation ask runs/bios-cpu/stages/KEY/hf "Which company does Alice Beth Nash work for?"
  python -m evaluation ask Qwen/Qwen2.5-0.5B "Who directed it?" --documents notes/
"""


def examine_command(argv: list[str], connect: Connect) -> int:
    parser = _parser("examine", EXAMINE, EXAMINE_EXAMPLES)
    parser.add_argument("questions", metavar="QUESTIONS.jsonl", type=Path, help='lines of {"question", "answers"}')
    args = parser.parse_args(argv)
    questions = read_questions(args.questions)
    sitting, about = _sit(args, questions, connect)
    by_mode = {mode: [r for r in sitting.rows if r["mode"] == mode] for mode in dict.fromkeys(r["mode"] for r in sitting.rows)}
    scores = {mode: set_scores(rows, 2000, 0) for mode, rows in by_mode.items()}
    if about:
        scores["retrieval"]["hit_at"] = hit_rates(by_mode["retrieval"])  # of questions with a doc_id
    if args.json:
        write_result(json.dumps({"model": args.model, "modes": scores, "retrieval": about, "answers": sitting.rows}, indent=1))
    else:
        out.print(_table(scores))
    return 0


def ask_command(argv: list[str], connect: Connect) -> int:
    parser = _parser("ask", "Ask any model one question, as the exam does.", ASK_EXAMPLES)
    parser.add_argument("question", help="in quotation marks")
    args = parser.parse_args(argv)
    sitting, _ = _sit(args, [Question("asked", args.question, ("",))], connect)
    answers = [
        {"mode": r["mode"], "answer": r["answer"], "probability": _probability(r["logprob"]), "passages": r["retrieved"]}
        for r in sitting.rows
    ]
    if args.json:
        write_result(json.dumps({"model": args.model, "question": args.question, "answers": answers}, indent=1))
        return 0
    for answer in answers:
        found = f", found in {', '.join(answer['passages'][: args.k])}" if answer["passages"] else ""
        sure = "" if answer["probability"] is None else f" (probability {answer['probability']:.2g}{found})"
        tell(f"{answer['mode']}: {answer['answer'] or '(nothing)'}{sure}")
    return 0


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = Command(f"python -m evaluation {name}", description=description, epilog=examples)
    parser.add_argument("model", metavar="MODEL", help="a folder with config.json, tokenizer and safetensors, or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    wordings = "wording of questions; default: the one that the model was trained in, else pit; chat: the model's own chat template"
    parser.add_argument("--template", choices=["pit", "alpaca", "chat"], help=wordings)
    parser.add_argument("--documents", metavar="FOLDER", type=Path, help="ask again after what is found in its .txt, .md and .jsonl files")
    parser.add_argument("--embedder", default=RetrievalConfig().embedder, help="model of sentence-transformers for --documents")
    parser.add_argument("--k", type=int, choices=range(1, 11), metavar="1…10", default=3, help="passages before the question (default 3)")
    parser.add_argument("--answer-tokens", type=whole(1), default=64, help="longest answer (default 64)")
    parser.add_argument("--gpus", type=whole(0), help="tensor-parallel GPUs; default: 1 where there is one")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: bfloat16 on GPUs, float32 on CPUs")
    engines = "auto: vLLM, and transformers where vLLM lacks or refuses the model, or computes it otherwise"
    parser.add_argument("--engine", choices=["auto", "vllm", "transformers"], default="auto", help=engines)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _sit(args: argparse.Namespace, questions: list[Question], connect: Connect) -> tuple[Sitting, dict[str, Any] | None]:
    config = ExamConfig(
        gpus=args.gpus,
        dtype=args.dtype,
        engine=args.engine,
        answer_tokens=args.answer_tokens,
        retrieval=RetrievalConfig(embedder=args.embedder, k=args.k),
    )
    documents = read_documents(args.documents) if args.documents else []
    exam = Exam(
        [("test", question) for question in questions],
        [],
        config.answer_tokens,
        config.dtype,
        modes=("closed", "retrieval") if documents else ("closed",),
        k=config.retrieval.k,
    )
    check_name("MODEL", args.model)
    template: Any = args.template or template_of(Path(args.model))
    encoder = Encoder(
        load_tokenizer(args.model, args.revision), Wording(template)
    )  # before any engine starts: a wrong name is one line at once
    log = _FOLDER / "asked.log"
    say(
        f"{args.model}: {len(questions)} question{'s' if len(questions) > 1 else ''}; {'' if template == 'pit' else f'asked as template {template} words it; '}details: {log}"
    )
    with chatter_to(log):
        from evaluation.engine import Engine
        from evaluation.engines.network import read_network
        from evaluation.examining.examine import look_up

        knowledge: Knowledge | None = None
        if documents:
            knowledge = look_up(exam, {"documents": documents}, _FOLDER / "retrieval", config.retrieval)
        with connect(config) as options, Engine(options) as engine:
            of = read_network(args.model, args.revision)
            paper = tokenise(exam, encoder, of.positions, knowledge.found if knowledge else None, of.short)
            engine.open(args.model, args.model, paper.max_model_len, args.revision)
            return sit(exam, paper, engine, encoder.eos_id, lambda items: None), dict(knowledge.about) if knowledge else None


def _probability(logprob: float | None) -> float | None:

    return None if logprob is None else math.exp(logprob)


def _table(scores: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, head in enumerate(["asked", "questions", *(metric.upper().replace("_", "-") + " %" for metric in METRICS)]):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for mode, of in scores.items():
        cells = [f"{100 * of[m]['mean']:.1f} ({100 * of[m]['low']:.0f}–{100 * of[m]['high']:.0f})" for m in METRICS]
        table.add_row(mode, str(of["n"]), *cells)
    return table
