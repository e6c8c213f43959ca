"""Who is asked to write and to check: from the words of a command to what Ray workers are made of."""

import argparse
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import SecretStr

from console import UserError
from data.build.arguments import KEY, generator_for
from data.build.asking.endpoint import Endpoint, check_endpoint, reach_endpoint, read_extra
from data.build.asking.exchange import Answers, Request, write_pending
from data.build.asking.generate import Crew, Spent, generate
from data.build.asking.local_model import LocalModel
from data.build.asking.methods import parts_of
from data.build.asking.prompts import load_prompts
from data.build.making.questions import Asking
from data.build.making.wordings import Ask, Writers


def check_asked(args: argparse.Namespace) -> None:
    """What can be refused before anything is read. UserError."""
    if args.endpoint:
        if not args.model:
            raise UserError("--endpoint: say which of its models to ask with --model NAME")
        url = check_endpoint(args.endpoint, _key(args.key_file) is not None)
        if args.extra_body:
            read_extra(args.extra_body)
        if not args.dry_run and not (args.out / "answers").is_dir():  # with answers there may be nothing left to ask
            reach_endpoint(url)
    elif args.key_file or args.extra_body:
        raise UserError(f"{'--key-file' if args.key_file else '--extra-body'} is for --endpoint")


def asking_of(args: argparse.Namespace, gpu_gib: float) -> Asking:
    model = args.model or generator_for(gpu_gib)
    named = f"{model}@{args.revision}" if args.revision else model
    checker = args.checker
    if args.extra_body:  # a reply depends on them, so they belong to the name that it is kept under
        fields = json.dumps(read_extra(args.extra_body), sort_keys=True)
        named, checker = f"{named} {fields}", f"{checker} {fields}" if checker else None
    prompts = load_prompts(args.prompts)
    parts = parts_of(args.method, args.texts, args.paraphrases, args.rewrites, prompts)
    return Asking(prompts, args.questions, named, args.seed, not args.endpoint, args.characters, checker, parts, args.tries)


def crew_of(args: argparse.Namespace, asking: Asking, gpu_gib: float, model: str | None = None) -> Crew:
    """model: another than the one that writes."""
    if args.endpoint:
        key = _key(args.key_file)
        url = check_endpoint(args.endpoint, key is not None)
        extra = read_extra(args.extra_body) if args.extra_body else None
        make = functools.partial(Endpoint, url, model or args.model, key, args.parallel, extra=extra)
        return Crew(make, args.workers, cpus=0.5, gpus=0, batch=4 * args.parallel)
    gpus = int(gpu_gib > 0) if args.gpus is None else args.gpus
    longest = args.max_model_len or args.characters // 2 + 512 + asking.longest_answer()
    revision = None if model else args.revision
    local = functools.partial(LocalModel, model or args.model or generator_for(gpu_gib), revision, longest, gpus)
    return Crew(local, args.workers, cpus=1, gpus=gpus, batch=64 if gpus else 8)


def writers_of(args: argparse.Namespace, asking: Asking) -> Writers:
    """Of questions in other words."""
    return Writers(asking.model, asking.checker or asking.model, asking.seed, asking.bounded, not args.unchecked)


def asked_by(args: argparse.Namespace, asking: Asking, gpu_gib: float, answers: Answers, spent: Spent) -> Ask:
    """What has requests answered that are not answered yet."""
    writes = crew_of(args, asking, gpu_gib)
    checks = crew_of(args, asking, gpu_gib, args.checker) if args.checker else writes
    pending_file = args.out / "work" / "requests.jsonl"

    def ask(requests: Iterable[Request], who: str, what: str) -> dict[str, str]:
        pending = write_pending(requests, answers, pending_file)
        return generate(pending, pending_file, answers, writes if who == "write" else checks, what, spent, not args.no_ray)

    return ask


def _key(path: Path | None) -> SecretStr | None:
    if path is None:
        key = os.environ.get(KEY, "")
    else:
        try:
            key = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--key-file {path}: cannot be read") from None
    key = key.strip()
    if not key.isascii() or any(character.isspace() for character in key):
        raise UserError(f"{'--key-file' if path else KEY}: holds more than one key")
    return SecretStr(key) if key else None
