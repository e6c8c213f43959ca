"""The tokenizer of a tiny model, made on the spot from the experiment's own records."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from data.records import Document, Question
from data.wording.templates import document_text, question_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of these texts; special tokens <pad> 0, <s> 1, which it puts before every text, </s> 2. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast  # seconds to import: only where tokens are made

    tokenizer = Tokenizer(models.BPE())
    # A name at the start of a text must be the token it is in the middle of a question: tiny models cannot afford to learn each word twice.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def texts_for_tokenizer(records: Mapping[Any, Iterable[Document | Question]]) -> Iterator[str]:
    """Every text that training shows, as templates word it."""
    for rows in records.values():
        for record in rows:
            yield question_text(record) if isinstance(record, Question) else document_text(record)
