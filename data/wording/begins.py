"""What begins a model's texts: what the tokenizer itself puts before them, found by trying, as in transformers, vLLM's server and lm-eval.

Llama, Gemma and Mistral add their bos token, GPT-2, Phi-3 and SmolLM2 name one and add none. A tokenizer whose file has no rule for it either way
(no post-processor and no `add_bos_token`, as in some conversions) is taken to mean the token that it names, where that stands for nothing else.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from console import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


FILE = "studyhall.json"
"""Beside a trained model's weights: data/rows/framing.py."""
Begins = Literal["auto", "always", "never"]


def start_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """What the tokenizer puts before a text; often nothing. Nearly always its bos token, but whatever it adds counts."""
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    whole = tokenizer("x")["input_ids"]
    if not bare:  # a vocabulary that has no x, nor a token for what it has not
        return named_start(tokenizer) if whole[:1] == named_start(tokenizer) else []
    found = next((n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare), 0)
    return list(whole[:found])


def named_start(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The bos token, whether the tokenizer adds it or not."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def begin(tokenizer: "PreTrainedTokenizerFast", wanted: Begins) -> bool:
    """Makes the tokenizer put what is wanted before every text; whether that changed it. UserError where `always` finds no token of that name."""
    named = named_start(tokenizer)
    if wanted == "always" and not named:
        raise UserError("model.bos: always, but the model's tokenizer names no beginning-of-sequence token; use auto")
    put = wanted == "always" or (wanted == "auto" and _says_nothing(tokenizer))
    if (wanted == "auto" and not put) or start_ids(tokenizer) == (named if put else []):
        return False
    _put_before(tokenizer, str(tokenizer.bos_token) if put else None)
    return True


def _says_nothing(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether nothing it came with has a rule for what is added, and its bos token is no other's sign: not what ends (GPT-2), not a turn's mark (SmolLM2).

    A family's own class is such a rule (Phi-3's is Llama's), `add_bos_token` another. transformers 5 writes a template that adds nothing where a
    tokenizer has no post-processor, so such a template says nothing; and it forgets the setting in what it loads, so the file is read.
    """
    from transformers import PreTrainedTokenizerFast

    bos = tokenizer.bos_token
    if (
        bos is None
        or bos in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        or str(bos) in str(tokenizer.chat_template or "")
    ):
        return False
    file = Path(tokenizer.name_or_path) / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else tokenizer.init_kwargs
    post = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    empty = post is None or (post["type"] == "TemplateProcessing" and not post["special_tokens"])
    return empty and type(tokenizer) is PreTrainedTokenizerFast and "add_bos_token" not in settings


def _put_before(tokenizer: "PreTrainedTokenizerFast", token: str | None) -> None:
    """Other post-processing (Llama 3 trims offsets) stays; a template of special tokens is replaced."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    values: Any = json.loads(backend.to_str())
    now = values["post_processor"] or {}
    kept = [part for part in now.get("processors", [now]) if part.get("type") == "ByteLevel"]
    before = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [*([before] if token else []), {"Sequence": {"id": "A", "type_id": 0}}]
    special = {token: {"id": token, "ids": [tokenizer.bos_token_id], "tokens": [token]}} if token else {}
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    values["post_processor"] = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    backend.post_processor = Tokenizer.from_str(json.dumps(values)).post_processor
    tokenizer.init_kwargs["add_bos_token"] = token is not None  # classes of transformers that make the template anew when they load


def as_trained(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Makes the tokenizer begin texts as the model of this folder was taught. Older versions put the named token before every text and left no word of it."""
    if not (folder / FILE).exists():
        by_older = folder.name == "hf" and (folder.parent / "manifest.json").is_file() and tokenizer.bos_token_id is not None
        begin(tokenizer, "always" if by_older else "auto")
