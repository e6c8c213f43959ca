"""What stands beside the weights of a sum: whose config, tokenizer, chat template and generation config, and with which token numbers."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from data.tokens import load_tokenizer
from trainer.store.stages import write_json

_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def copy_description(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    """Everything of a model folder but its weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in description_files(source):
        if file.name not in without:
            shutil.copyfile(file, target / file.name)


def description_files(folder: Path) -> list[Path]:
    """Config, tokenizer, template: all of a model folder but its weights."""
    return [file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES and ".index." not in file.name and file.is_file()]


def describe_result(
    target: Path, descendant: Path, instruct: Path, tokenizer_of: Literal["instruct", "descendant"], rows: int, dtype: torch.dtype
) -> None:
    """Config: the descendant's, whose weights most of it is. Tokenizer: the one that knows all tokens. The rest: the instruct model's.

    `rows`: of the result's embeddings. No template is rendered.
    """
    source = instruct if tokenizer_of == "instruct" else descendant
    copy_description(source, target, without=("config.json", "generation_config.json", "chat_template.json", "chat_template.jinja"))
    _put_chat_template(instruct, target)
    number = _renumbered(instruct, source)
    if source == instruct and (instruct / "generation_config.json").is_file():
        # As it is, byte for byte: the exam's engine takes other weights only where everything else is the same.
        shutil.copyfile(instruct / "generation_config.json", target / "generation_config.json")
    elif theirs := _read(instruct / "generation_config.json"):
        write_json(target / "generation_config.json", {**theirs, **{role: number(theirs[role]) for role in _ROLES if role in theirs}})
    config = AutoConfig.from_pretrained(descendant, trust_remote_code=False)
    text = config.get_text_config()
    text.vocab_size = rows
    spoken = AutoConfig.from_pretrained(instruct, trust_remote_code=False).get_text_config()
    for role in _ROLES:
        setattr(text, role, number(getattr(spoken, role, None)))
    config.dtype = dtype
    config.save_pretrained(target)


def _put_chat_template(instruct: Path, target: Path) -> None:
    if (file := instruct / "chat_template.jinja").is_file():
        shutil.copyfile(file, target / file.name)
    theirs, ours = _read(instruct / "tokenizer_config.json"), _read(target / "tokenizer_config.json")
    if ours and theirs.get("chat_template") != ours.get("chat_template"):
        ours.pop("chat_template", None)
        write_json(target / "tokenizer_config.json", ours | {key: theirs[key] for key in ("chat_template",) if key in theirs})


def _renumbered(instruct: Path, source: Path) -> Any:
    """A function from the instruct model's token numbers to those of `source`, by the tokens' strings."""
    if instruct == source:
        return lambda numbers: numbers
    theirs, ours = (load_tokenizer(str(folder)) for folder in (instruct, source))

    def number(numbers: Any) -> Any:
        if isinstance(numbers, list):
            return [number(one) for one in numbers]
        return None if numbers is None else ours.convert_tokens_to_ids(theirs.convert_ids_to_tokens(numbers))

    return number


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
