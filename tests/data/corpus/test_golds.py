"""Gold answers that no model can give are counted before training, and in the report."""

import json
from pathlib import Path

import pytest

from data.__main__ import main
from data.corpus.golds import unreachable
from data.records import Question
from data.tokens import Encoder

HAND = [
    Question("two", "Who built it?", ("Ada Holm\nJörg Weiß",)),
    Question("long", "How?", ("by rope " * 20,)),
    Question("either", "Where?", ("Lund\nSweden", "Lund")),  # the second can be given
    Question("good", "When?", (" 1911\n",)),
]


def test_by_reason() -> None:
    found = unreachable(HAND, 32, lambda question: len(question.answers[0].split()))
    assert found.ids == {"several lines": ["two"], "no token": [], "too long": ["long"]} and found.asked == 4 and not found.estimated
    assert found.in_words() == (
        "2 of 4 exam questions have a gold answer that no model can give: 1 of several lines, and an answer ends with its first line break; "
        "1 longer than exam.answer_tokens, 32; the first: two"
    )
    assert unreachable(HAND, 32).ids["too long"] == ["long"], "160 bytes are about 40 tokens"
    assert unreachable(HAND[2:], 32).in_words() is None, "the twin"


@pytest.mark.parametrize("byte_level", [False, True])
def test_what_the_tokenizer_cannot_write(byte_level: bool) -> None:
    """A WordPiece without the letters has [UNK] for them; a byte-level tokenizer can write anything, though it names an unk_token as GPT-2's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if byte_level:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({"<end>": 0, **{letter: n for n, letter in enumerate(letters, 1)}}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        words = ["[UNK]", "<end>", "Question", ":", "Answer", "Where", "?", "Lund"]
        backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<end>" if byte_level else "[UNK]")
    asked = [Question("can", "Where?", ("Lund",)), Question("cannot", "Where?", ("Łódź",)), Question("either", "Where?", ("Łódź", "Lund"))]
    found = unreachable(asked, 32, Encoder(tokenizer).gold_length)
    assert found.ids["no token"] == ([] if byte_level else ["cannot"])
    assert byte_level or "1 with characters that the model's tokenizer has no token for" in str(found.in_words())


def test_check_plan_and_dry_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiment import load_experiment
    from trainer.dry_run import dry_run, in_lines

    rows = [{"id": q.id, "question": q.question, "answers": list(q.answers), "doc_id": "d"} for q in HAND]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text(json.dumps({"id": "t", "text": "The lamp of Lund was built in 1911."}) + "\n")
    (tmp_path / "new.jsonl").write_text(json.dumps({"id": "d", "text": "The crane of Lund was built by Ada Holm."}) + "\n")
    sources = "".join(
        f"    - {{path: {name}.jsonl, split: {split}, holds: {holds}}}\n"
        for name, split, holds in (("exam", "test", "questions"), ("train", "train", "documents"), ("new", "test", "documents"))
    )
    (tmp_path / "x.yaml").write_text(
        f"name: x\ndata:\n  root: {tmp_path}\n  sources:\n{sources}model: {{tiny: {{vocab_size: 300}}}}\nexam: {{answer_tokens: 32}}\n"
        "arms:\n  a:\n    stages: [{mix: {train_documents: 1}, steps: 2, batch_items: 1, rate: 1e-3, warmup_steps: 3}]\n"
    )
    for command in ("check", "plan"):
        main([command, str(tmp_path / "x.yaml")])
        printed = capsys.readouterr()
        assert "2 of 4 exam questions have a gold answer that no model can give: 1 of several lines" in printed.out
        assert "warmup_steps 3 is longer than the stage of 2 steps" in printed.err or command == "check"
        main([command, str(tmp_path / "x.yaml"), "--json"])
        assert json.loads(capsys.readouterr().out)["unreachable"]["several lines"] == ["two"]
    e = load_experiment(tmp_path / "x.yaml")
    told = in_lines(dry_run(e.data, e.model, e.curricula(), e.seed, None, e.exam.answer_tokens))
    assert told[-1].startswith("2 of 4 exam questions have a gold answer that no model can give")
