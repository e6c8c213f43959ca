"""The experiment's model with a tokenizer that begins texts as `model.bos` says."""

import shutil
from pathlib import Path

from console import UserError, say
from data.rows.framing import template_of, write_framing
from data.tokens import load_tokenizer
from data.wording.begins import FILE, Begins, begin, named_start, start_ids

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", FILE)


def begun_as(folder: Path, target: Path, wanted: Begins) -> Path:
    """`folder`, where its tokenizer begins texts as wanted; else `target`, made of links to all files but the tokenizer's.

    So exam, lm-eval and `vllm serve` need no setting of their own: they do what the tokenizer does.
    """
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(str(folder))  # first: it refuses in one line what cannot be read
    usual = start_ids(tokenizer)
    begin(tokenizer, wanted)
    start, own = start_ids(tokenizer), start_ids(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if wanted == "auto" and start != named_start(tokenizer) and not start:
        say(f"texts begin without {tokenizer.bos_token}: the tokenizer names it and does not add it")
    if wanted == "auto" and start != own:
        say(f"texts begin with {tokenizer.bos_token}, which the tokenizer names and does not add; model.bos: never leaves it out")
    if start == own == usual:
        return folder
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name not in _TOKENIZER:
            (target / file.name).symlink_to(file.resolve())
    tokenizer.save_pretrained(target)
    write_framing(target, template_of(folder), tokenizer)
    if start_ids(load_tokenizer(str(target))) != start:
        raise UserError(f"model.bos: {wanted}: this tokenizer cannot be made to begin texts otherwise; use auto")
    return target
