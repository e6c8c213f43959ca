"""What the exam shows of a question are the very tokens that training reads, in every wording and for tokenizers that join what stands at the border."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.records import Question
from data.tokens import Encoder
from data.wording.templates import Wording, question_prompt

QUESTIONS = [
    Question(f"q{n}", f"Where was {name} born?", (town,))
    for n, (name, town) in enumerate([("Ada", "Oslo"), ("Bo", "New York"), ("Cy", "«Ö»")])
]
SPLITS = {
    "a line break alone": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    "with the sign before": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Llama 3
}


def tokenizer_of(split: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    texts = [question_prompt(q.question, template) + q.answers[0] for q in QUESTIONS for template in ("pit", "alpaca")] * 20
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["</s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.mark.parametrize("template", ["pit", "alpaca"])
@pytest.mark.parametrize("split", SPLITS)
def test_prompt_and_answer_are_what_was_trained(split: str, template: str) -> None:
    tokenizer = tokenizer_of(SPLITS[split])
    encoder = Encoder(tokenizer, Wording(template))  # type: ignore[arg-type]
    for question in QUESTIONS:
        [(trained, first)] = encoder.encode([question])
        prompt = encoder.prompt(question.question)
        assert trained == [*prompt, *encoder.gold(question), encoder.eos_id]
        assert first == len(prompt) - (template == "alpaca")  # there the line break, or what holds it, is learnt as well
        assert tokenizer.decode(encoder.gold(question)).strip() == question.answers[0]


def test_some_tokenizers_do_join_them() -> None:
    """The twin: without its line break the prompt would end in a token that training never had there."""
    ids = {split: tokenizer_of(SPLITS[split]).encode("### Response:\nOslo", add_special_tokens=False) for split in SPLITS}
    tokens = {split: tokenizer_of(SPLITS[split]).convert_ids_to_tokens(of) for split, of in ids.items()}
    assert ":Ċ" in tokens["with the sign before"] and ":Ċ" not in tokens["a line break alone"]
