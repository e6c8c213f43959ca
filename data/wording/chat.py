"""The model's own chat template as a wording of questions: `template: chat`.

The template is rendered once with marks in the place of question and answer; what stands around the marks is the layout of every
question. So text that looks like a template or a control token stays text, and nothing depends on the day (Llama 3's date is fixed)
or on a thinking mode (Qwen 3's is off).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from console import UserError
from data.records import Question
from data.wording.chat_render import TemplateFault, limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_QUESTION, _ANSWER = "\ue010question\ue011", "\ue010answer\ue011"  # private use: in no template, in no trimming rule
_REMEDY = "use template: pit or alpaca, or an instruct model whose tokenizer has one that fits"
_SETTINGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}  # variables of templates; those that know them not ignore them

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Layout:
    """before + question + after is the prompt; lead + answer + end is learnt."""

    before: str
    after: str
    lead: str
    """White space that some templates put before an answer (Llama 2)."""
    end: str
    """Up to and including the end-of-turn token; empty where the template names none."""
    end_id: int
    """The token that ends an answer: the end of turn, else the tokenizer's end of sequence."""


def chat_layout(tokenizer: "PreTrainedTokenizerFast") -> Layout:
    """The layout of a tokenizer's chat template. UserError where there is none, or where the answer does not just continue the prompt."""
    asked, answered = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    try:
        if not tokenizer.chat_template:
            raise TemplateFault("there is none")
        prompt, whole = limited(lambda: [_rendered(tokenizer, [asked], True), _rendered(tokenizer, [asked, answered], False)])
    except TemplateFault as error:
        why = "has no chat template" if not tokenizer.chat_template else f"has a chat template that fails ({error})"
        raise UserError(f"template chat: the model's tokenizer {why}; {_REMEDY}") from None
    learnt = whole[len(prompt) :]
    if prompt.count(_QUESTION) != 1 or not whole.startswith(prompt) or learnt.count(_ANSWER) != 1 or learnt.split(_ANSWER)[0].strip():
        raise UserError(f"template chat: with the model's chat template an answer does not just continue the prompt; {_REMEDY}")
    before, after = prompt.split(_QUESTION)
    lead, tail = learnt.split(_ANSWER)
    controls = control_tokens(tokenizer)
    end = re.search("|".join(_patterns(controls)), tail)
    if end is None:
        return Layout(before, after, lead, "", int(tokenizer.eos_token_id))
    return Layout(before, after, lead, tail[: end.end()], controls[end[0]])


def control_tokens(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Text → id of the tokens that a template may use and user text may not."""
    special = {
        token.content: int(n) for n, token in tokenizer.added_tokens_decoder.items() if token.special and n != tokenizer.unk_token_id
    }
    return {**special, str(tokenizer.eos_token): int(tokenizer.eos_token_id)}


class ChatEncoder:
    """Tokens of questions in a layout. `plain`: the tokenizer's backend that takes control tokens for text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", plain: Any) -> None:
        from tokenizers import Tokenizer

        self.layout = chat_layout(tokenizer)
        self.controls = control_tokens(tokenizer)
        self._plain = plain
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._ids = frozenset(self.controls.values())

    @property
    def head(self) -> list[int]:
        """What every prompt begins with: the frame up to where the user's text begins. Passages for a question stand after it."""
        first, second = (self.prompt(question) for question in ("What?", "7"))
        return first[: next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)]

    def prompt_text(self, question: str) -> str:
        return self.layout.before + question + self.layout.after

    def prompt(self, question: str) -> list[int]:
        return self._encode([self._prompt_parts(question)])[0][0]

    def questions(self, records: list[Question]) -> Iterator[tuple[list[int], int]]:
        """(tokens, the first one whose characters reach beyond the prompt) of each question with its first answer."""
        layout = self.layout
        parts = [[*self._prompt_parts(q.question), (layout.lead, False), (q.answers[0], True), (layout.end, False)] for q in records]
        for record, (ids, offsets) in zip(records, self._encode(parts), strict=True):
            prompt = len(self.prompt_text(record.question))
            first = next((n for n, (_, end) in enumerate(offsets) if end > prompt), len(ids))
            yield ids + ([] if layout.end else [layout.end_id]), first

    def _prompt_parts(self, question: str) -> "list[tuple[str, bool]]":
        return [(self.layout.before, False), (question, True), (self.layout.after, False)]

    def _encode(self, texts: "list[list[tuple[str, bool]]]") -> list[tuple[list[int], Offsets]]:
        """Each text is given in parts (text, is it the user's). In one piece, as the model was trained; but where a part of the
        user's would become a control token, between the template's control tokens, all else as plain text."""
        encoded = self._backend.encode_batch(["".join(text for text, _ in parts) for parts in texts], add_special_tokens=False)
        result = []
        for parts, encoding in zip(texts, encoded, strict=True):
            template = "".join(text for text, is_users in parts if not is_users)
            expected = [self.controls[text] for text in re.findall("|".join(_patterns(self.controls)), template)]
            injected = [n for n in encoding.ids if n in self._ids] != expected
            result.append(self._in_pieces(parts) if injected else (encoding.ids, encoding.offsets))
        return result

    def _in_pieces(self, parts: "list[tuple[str, bool]]") -> tuple[list[int], Offsets]:
        splitter = re.compile(f"({'|'.join(_patterns(self.controls))})")
        pieces: list[tuple[str, bool]] = []  # (text, is it a control token)
        for text, is_users in parts:
            for piece in [text] if is_users else splitter.split(text):
                control = not is_users and piece in self.controls
                if pieces and not control and not pieces[-1][1]:
                    pieces[-1] = (pieces[-1][0] + piece, False)
                else:
                    pieces.append((piece, control))
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for piece, control in pieces:
            if control:
                ids.append(self.controls[piece])
                offsets.append((begin, begin + len(piece)))
            else:
                encoding = self._plain.encode(piece, add_special_tokens=False)
                ids += encoding.ids
                offsets += [(begin + a, begin + b) for a, b in encoding.offsets]
            begin += len(piece)
        return ids, offsets


def _rendered(tokenizer: "PreTrainedTokenizerFast", messages: list[dict[str, str]], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **_SETTINGS))


def _patterns(controls: dict[str, int]) -> list[str]:
    """Longest first, so that no token hides one that begins like it."""
    return [re.escape(text) for text in sorted(controls, key=len, reverse=True)]
