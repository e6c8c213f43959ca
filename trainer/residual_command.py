"""python -m trainer residual make | apply: instruction residuals of any models, without an experiment."""

import argparse
from pathlib import Path

from console import Command, UserError, finite, positive, say, write_result
from trainer.config import ModelConfig

_ABOUT = """\
Saves `instruct − base` as a residual, and adds it to any model that was trained on from the base: it follows instructions again, without an
instruction tuning (arXiv 2410.10739; docs/residual.md).

A model is a folder (config.json, tokenizer, safetensors), a trained arm (runs/NAME:ARM), or a hub id. Arithmetic is fp32, a MiB at a time.
"""
_EXAMPLES = """\
examples:
  python -m trainer residual make meta-llama/Meta-Llama-3-8B-Instruct meta-llama/Meta-Llama-3-8B --out residuals/llama3-8b
  python -m trainer residual apply residuals/llama3-8b runs/cpt-news-8b:cpt --out models/news-instruct
  python -m trainer residual apply residuals/llama3-8b runs/cpt-news-8b:cpt --out models/sweep --scale 0.5 0.75 1
  python -m evaluation examine models/news-instruct/hf QUESTIONS.jsonl
"""


def residual_command(argv: list[str]) -> int:
    arguments = _arguments(argv)
    if arguments.shard_gib <= 0:
        raise UserError(f"--shard-gib {arguments.shard_gib:g}: a shard must hold something")
    shard_bytes = int(arguments.shard_gib * 2**30)
    if arguments.command == "make":
        _make(arguments.instruct, arguments.base, arguments.out, shard_bytes)
    else:
        _apply(arguments, shard_bytes)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Command("python -m trainer residual", description=_ABOUT, epilog=_EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="make | apply")
    make = commands.add_parser("make", help="save instruct − base")
    make.add_argument("instruct", help="the instruct model")
    make.add_argument("base", help="the base that it was made from")
    apply = commands.add_parser("apply", help="add a residual to a descendant of the base")
    apply.add_argument("residual", type=Path, help="folder that make has written")
    apply.add_argument("descendant", help="a model that was trained on from the base")
    apply.add_argument("--scale", type=finite, nargs="+", default=[1.0], help="of the residual; several: a folder scale-N each below --out")
    tokens_help = "whose rows tokens get that both have and the base lacks"
    apply.add_argument("--new-tokens", choices=["instruct", "descendant"], default="instruct", help=tokens_help)
    apply.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the result; by default the descendant's")
    for command in (make, apply):
        command.add_argument("--out", type=Path, required=True, help="folder to write; it must not be there")
        command.add_argument("--shard-gib", type=positive, default=5.0, help="largest file of weights")
    return parser.parse_args(argv)


def _make(instruct: str, base: str, out: Path, shard_bytes: int) -> None:
    from trainer.merging.residual.artefact import make_residual
    from trainer.merging.residual.models import open_model

    made = make_residual(open_model(instruct, _folder_of(instruct)), open_model(base, _folder_of(base)), out, shard_bytes)
    for note in made.manifest["notes"]:
        say(note)
    size = made.manifest["relative_norm"]
    write_result(f"{out}: {instruct} − {base}, {made.manifest['parameters']:,} parameters, {100 * size:.2f} % of the base's norm")


def _apply(arguments: argparse.Namespace, shard_bytes: int) -> None:
    from trainer.merging.residual.artefact import add_residual
    from trainer.merging.residual.models import open_model
    from trainer.merging.residual.saved import open_residual

    residual = open_residual(arguments.residual)
    descendant = open_model(arguments.descendant, _folder_of(arguments.descendant))
    told: list[str] = []
    for scale in dict.fromkeys(arguments.scale):
        out = arguments.out if len(arguments.scale) == 1 else arguments.out / f"scale-{scale:g}"
        manifest = add_residual(residual, descendant, out, scale, arguments.new_tokens, arguments.dtype, shard_bytes)
        for note in (note for note in manifest["notes"] if note not in told):
            told.append(note)
            say(note)
        write_result(f"{out / 'hf'}: {arguments.descendant} + {scale:g} × ({residual.name})")


def _folder_of(text: str) -> Path:
    """A folder as it is, a trained arm's hf/, or what the hub has, fetched to runs/hub."""
    from data.corpus.changes import run_and_arm
    from trainer.jobs.hub import fetch_model
    from trainer.jobs.parent import find_parent

    if (Path(text) / "config.json").is_file():
        return Path(text)
    if (run_and_arm(text)[0] / "arms.json").is_file():
        return find_parent(text).hf
    if Path(text).exists() or text.startswith((".", "/")):
        raise UserError(f"{text}: holds no model (no config.json); give a model folder, runs/NAME:ARM, or a hub id")
    return Path(fetch_model(ModelConfig(name=text), Path("runs/hub") / text.replace("/", "--")))
