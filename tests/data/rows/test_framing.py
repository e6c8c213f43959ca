"""What begins a text, family by family: what the tokenizer itself adds, or the token that is named where it says nothing; models of older versions keep theirs."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from console import UserError
from data.records import Document, Question
from data.rows.framing import template_of, write_framing
from data.tokens import Encoder, load_tokenizer
from data.wording.begins import FILE, begin, named_start, start_ids
from data.wording.tiny_tokenizer import make_tokenizer
from trainer.jobs.begun import begun_as

ASKED = Question("q", "Who wrote Dune?", ("Frank Herbert",))


def template(bos: str, number: int, ends: str = "") -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)])


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """The post-processor and the named tokens of a family's tokenizer.json, around a small vocabulary."""
    names: dict[str, tuple[str | None, str, Any]] = {
        "llama-2": ("<s>", "</s>", template("<s>", 0)),
        "llama-3": (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>", 0)]),
        ),
        "gemma": ("<bos>", "<eos>", template("<bos>", 0)),
        "mistral": ("<s>", "</s>", template("<s>", 0)),
        "qwen-2.5": (None, "<|im_end|>", processors.ByteLevel(trim_offsets=False)),
        "gpt-2": ("<|endoftext|>", "<|endoftext|>", processors.ByteLevel(trim_offsets=True)),
        "smollm-2": ("<|im_start|>", "<|im_end|>", None),  # a turn's mark
        "phi-3": ("<s>", "<|endoftext|>", None),  # and its tokenizer_config.json says add_bos_token: false
        "says nothing": ("<s>", "</s>", None),
    }
    bos, eos, post = names[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = list(dict.fromkeys(token for token in (bos, eos) if token))
    backend.train_from_iterator(
        ["Who wrote Dune? Frank Herbert."],
        trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    if post is not None:
        backend.post_processor = post
    turns = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" if family == "smollm-2" else None
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        chat_template=turns,
        **({"add_bos_token": False} if family == "phi-3" else {}),
    )


ADD, ADD_NOT = ["llama-2", "llama-3", "gemma", "mistral"], ["qwen-2.5", "gpt-2", "smollm-2", "phi-3"]


@pytest.mark.parametrize("family", ADD + ADD_NOT)
def test_a_text_begins_as_the_tokenizer_begins_it(family: str) -> None:
    """Documents, questions, prompts alike; before 2026-11-28 the named token stood there, which is the twin."""
    tokenizer = tokenizer_of(family)
    encoder = Encoder(tokenizer)
    start = [tokenizer.bos_token_id] if family in ADD else []
    assert start_ids(tokenizer) == encoder.start == start
    text = "Frank Herbert wrote Dune."
    assert encoder.document(Document("d", text)) == encoder.encode([Document("d", text)])[0][0] == tokenizer(text)["input_ids"]
    [(ids, first)] = encoder.encode([ASKED])
    assert ids[:first] == encoder.prompt(ASKED.question) == tokenizer("Question: Who wrote Dune? Answer:")["input_ids"]
    assert ids == tokenizer("Question: Who wrote Dune? Answer: Frank Herbert")["input_ids"] + [tokenizer.eos_token_id]
    assert (named_start(tokenizer) == start) == (family in [*ADD, "qwen-2.5"])


@pytest.mark.parametrize("family", ADD + ADD_NOT)
def test_bos_can_be_put_before_every_text_or_left_out(family: str) -> None:
    bare = tokenizer_of(family)("Dune", add_special_tokens=False)["input_ids"]
    never, always = tokenizer_of(family), tokenizer_of(family)
    assert begin(never, "never") == (family in ADD) and never("Dune")["input_ids"] == bare
    assert Encoder(never).start == []
    if family == "qwen-2.5":
        with pytest.raises(UserError, match="names no beginning-of-sequence token"):
            begin(always, "always")
        return
    assert begin(always, "always") == (family in ADD_NOT)
    assert always("Dune")["input_ids"] == [always.bos_token_id, *bare]
    twice = always("Dune", "Dune")["input_ids"]
    assert twice[0] == always.bos_token_id and not begin(always, "auto")


@pytest.mark.parametrize("family", [*ADD, *ADD_NOT, "says nothing"])
def test_auto_puts_a_named_token_only_where_nothing_is_said(family: str, tmp_path: Path) -> None:
    tokenizer_of(family).save_pretrained(tmp_path)
    if family == "phi-3":
        config = tmp_path / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "add_bos_token": False}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert Encoder(tokenizer).start == ([tokenizer.bos_token_id] if family in [*ADD, "says nothing"] else [])
    assert begin(tokenizer_of(family), "auto") == (family == "says nothing")


def test_more_than_one_token_and_one_at_the_end() -> None:
    tokenizer = tokenizer_of("llama-2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert start_ids(tokenizer) == [1, 0]


@pytest.mark.parametrize(
    ("family", "bos", "starts"),
    [("smollm-2", "always", True), ("says nothing", "auto", True), ("says nothing", "never", False), ("llama-3", "never", False)],
)
def test_a_folder_with_another_beginning_is_made_of_links(family: str, bos: Any, starts: bool, tmp_path: Path) -> None:
    """What loads it (here transformers) begins texts as the setting says; where its own tokenizer does so anyway the folder itself is used."""
    folder, target = tmp_path / "model", tmp_path / "begun"
    tokenizer = tokenizer_of(family)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    if family != "says nothing":
        assert begun_as(folder, target, "auto") == folder and not target.exists()
    assert begun_as(folder, target, bos) == target
    assert (target / "model.safetensors").resolve() == folder / "model.safetensors"
    assert start_ids(PreTrainedTokenizerFast.from_pretrained(target)) == ([tokenizer.bos_token_id] if starts else [])
    assert start_ids(load_tokenizer(str(target))) == ([tokenizer.bos_token_id] if starts else [])
    own = start_ids(PreTrainedTokenizerFast.from_pretrained(folder))
    assert own == ([tokenizer.bos_token_id] if family == "llama-3" else []), "the user's own folder stays as it is"


def test_what_an_older_version_trained_keeps_its_beginning(tmp_path: Path) -> None:
    """Its stages know nothing of the file that says how they were trained; their texts began with the token that was named."""
    old, new = tmp_path / "stages/0a/hf", tmp_path / "stages/0b/hf"
    for folder in (old, new):
        tokenizer_of("gpt-2").save_pretrained(folder)
        (folder.parent / "manifest.json").write_text(json.dumps({"job": {"stage": STAGE, "parent": None}}))
    write_framing(new, "chat", load_tokenizer(str(tmp_path / "stages/0b/hf")))
    (new / FILE).write_text(json.dumps({"template": "chat"}))
    assert Encoder(load_tokenizer(str(old))).start == [load_tokenizer(str(old)).bos_token_id]
    assert Encoder(load_tokenizer(str(new))).start == []
    assert (template_of(old), template_of(new), template_of(tmp_path)) == ("alpaca", "chat", "pit")
    linked = begun_as(old, tmp_path / "begun", "auto")
    assert linked != old and start_ids(PreTrainedTokenizerFast.from_pretrained(linked)) != [], "what goes on from it begins the same"


def test_the_made_tokenizer_adds_its_own() -> None:
    tokenizer = make_tokenizer(["Who wrote Dune?"], 400)
    assert tokenizer("Who")["input_ids"] == [1, *tokenizer("Who", add_special_tokens=False)["input_ids"]]


STAGE = {"mix": {"train_questions": 1}, "rate": 1e-3, "epochs": 1, "batch_items": 2, "template": "alpaca"}
