"""What a build will cost before it costs anything."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from console import UserError
from data.build.asking.exchange import Answers, Request
from data.build.making.questions import NOT_KNOWN_YET, Asking
from data.ground.words import tokens_estimated

_TOKENS_A_QUESTION = 60
"""A question, its answer and level as JSON, as instruct models write them; the allowance (Request.max_tokens) is larger."""
_TOKENS_A_MESSAGE = 8


@dataclass
class Estimate:
    """Tokens are estimated from characters; only what has no reply yet counts."""

    requests: int = 0
    answered: int = 0
    """Replies that lie in DIR/answers already: they cost nothing."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    most_answer_tokens: int = 0
    guessed_tokens: int = 0
    """Of the above, to read and write for what follows from replies: around questions and names that are not known yet."""

    def cost(self, price: tuple[float, float]) -> tuple[float, float]:
        """(likely, at most) at prices per million tokens (prompt, answer)."""
        prompt = self.prompt_tokens * price[0]
        return (prompt + self.answer_tokens * price[1]) / 1e6, (prompt + self.most_answer_tokens * price[1]) / 1e6

    def in_words(self, price: tuple[float, float] | None) -> str:
        words = (
            f"{self.requests:,} requests to make ({self.answered:,} answered already): about {self.prompt_tokens:,} tokens to read "
            f"and {self.answer_tokens:,} to write (at most {self.most_answer_tokens:,})"
        )
        if price is None:
            return words
        likely, most = self.cost(price)
        return f"{words}; cost about {likely:,.2f}, at most {most:,.2f}"

    def within(self, budget: int | None, answers: Answers) -> int | None:
        """Tokens of the budget that are left for the requests to make. UserError where they would take more. Where something is answered already, of what
        follows from replies nobody can tell how much is: it is held against the budget when it is asked."""
        if budget is None:
            return None
        left = budget - answers.tokens()
        wanted = self.prompt_tokens + self.answer_tokens - (self.guessed_tokens if self.answered else 0)
        if wanted and wanted > left:
            there = f"; {budget - left:,} are spent already" if left < budget else ""
            raise UserError(
                f"--budget {budget}: about {wanted:,} tokens are needed{there}; give more, or ask for less (--texts, --method, --questions)"
            )
        return left


def estimate(requests: Iterable[Request], answers: Answers, asking: Asking) -> Estimate:
    """Of the first attempt at everything; what is asked again, and checks, come on top. A rewrite is about as long as its document."""
    found = Estimate()
    for request in requests:
        if answers.has(request.key):
            found.answered += 1
            continue
        found.requests += 1
        prompt = sum(tokens_estimated(m["content"]) + _TOKENS_A_MESSAGE for m in request.messages)
        found.prompt_tokens += prompt
        long = request.schema is not None and not {"text", "list"}.isdisjoint(request.schema["properties"])
        likely = round(request.max_tokens * 3 / 4) if long else _TOKENS_A_QUESTION * asking.most
        found.answer_tokens += min(request.max_tokens, likely)
        if any(NOT_KNOWN_YET in message["content"] for message in request.messages):
            found.guessed_tokens += prompt + min(request.max_tokens, likely)
        found.most_answer_tokens += request.max_tokens
    return found


def total(estimates: Iterable[Estimate]) -> Estimate:
    return Estimate(*(sum(column) for column in zip(*map(astuple, estimates), strict=True)))
