"""What a model writes when nothing is asked: texts for an anchor where no replay data are at hand (docs/teaching.md)."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from console import Command, RunError, UserError, positive, progress, say, whole
from data.ground.durable import check_new, new_file
from data.ground.imports import importing
from data.ground.model_config import check_name
from data.tokens import load_tokenizer
from data.wording.begins import start_ids

_TRIES = 10
"""Texts that are drawn for each that is wanted, at most: a model may write little, or the same again."""
_DESCRIPTION = """\
Have a model write texts of its own: sampled from the token that begins its texts (of a tokenizer without one: from the one that ends them).
They become replay documents, so that `anchor` can hold the model to what it says where no replay data are at hand.
"""
_EXAMPLES = """\
examples:
  python -m evaluation write runs/bios-cpu/stages/KEY/hf --out own.jsonl --texts 500
  python -m evaluation write Qwen/Qwen2.5-0.5B --out own.jsonl --texts 2000 --tokens 512

then, in an experiment:
  data: {sources: [{path: own.jsonl, split: replay, holds: documents}, …]}
  arms: {new: {preset: cpt, dials: {replay_share: 0.1}, anchor: {cross_entropy: 0}}}
"""


def write_command(argv: list[str]) -> int:
    parser = Command("python -m evaluation write", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="a folder with config.json, tokenizer and safetensors, or a hub id")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="written whole or not at all")
    parser.add_argument("--texts", type=whole(1), default=500, help="different ones (default 500)")
    parser.add_argument("--tokens", type=whole(2), default=256, help="longest text (default 256)")
    parser.add_argument("--temperature", type=positive, default=1.0, help="1 (default): what the model itself says")
    parser.add_argument("--batch", type=whole(1), default=32, help="texts written at once (default 32)")
    parser.add_argument("--seed", type=whole(0), default=0)
    args = parser.parse_args(argv)
    check_new(args.out)
    check_name("MODEL", args.model)
    tokenizer = load_tokenizer(args.model, args.revision)
    with new_file(args.out) as file, progress() as bar:
        task = bar.add_task("texts", total=args.texts)
        for text in own_texts(args, tokenizer):
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]  # texts of two models can stand side by side
            file.write(json.dumps({"id": f"own-{digest}", "text": text}, ensure_ascii=False) + "\n")
            bar.advance(task)
    say(f"{args.out}: {args.texts} texts; read it before you train on it")
    return 0


def own_texts(args: argparse.Namespace, tokenizer: Any) -> Iterator[str]:
    """`args.texts` different texts, the same for a seed on one kind of machine. RunError where the model has no more."""
    with importing():
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            args.model, revision=args.revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # whatever the libraries make of a broken or unknown folder, the remedy is the user's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"MODEL {args.model}: cannot be loaded: {reason}") from None
    model = model.to(device).eval()
    ends = int(tokenizer.eos_token_id)
    longest = min(args.tokens, int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or args.tokens) - 1)
    model.generation_config = GenerationConfig()  # the model's own may ask for a penalty or for few of its words
    how = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0, "max_new_tokens": longest}
    begin = torch.tensor([start_ids(tokenizer) or [ends]], device=device)
    seen: set[str] = set()
    torch.manual_seed(args.seed)
    for _ in range(-(-_TRIES * args.texts // args.batch)):
        with torch.no_grad():
            written = model.generate(begin.expand(args.batch, -1), eos_token_id=ends, pad_token_id=ends, **how)
        for ids in written[:, begin.shape[1] :].tolist():
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            if text and text not in seen:
                seen.add(text)
                yield text
                if len(seen) == args.texts:
                    return
    raise RunError(
        f"{args.model}: wrote {len(seen)} different texts in {_TRIES * args.texts} tries; ask for fewer --texts, or give a higher --temperature"
    )
