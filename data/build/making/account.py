"""The account of a build: what came in is used or left out with its reason, of every kind of thing; the numbers add up or it is our fault."""

import json
import re
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

from data.records import Refusal

What = Literal["files", "rows", "documents", "answers", "questions", "lists", "names", "rewrites", "wordings"]
"""`rows`: of tables; `answers`: of the model, one a document, each holding several questions; `lists`: of a method's
names (entities, strategies), one a document; `rewrites`: documents in other words; `wordings`: questions in other words."""

LEFT_OUT = "left_out.jsonl"
_DETAIL = re.compile(r" at |: | \(|; | of [\d,]+ |named '")


class Account:
    """Counts, and writes what is left out to left_out.jsonl as it comes. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.came: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.left: dict[str, Counter[str]] = {}
        self._path = folder / LEFT_OUT
        self._file: TextIO

    def __enter__(self) -> "Account":
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def use(self, what: What, number: int = 1) -> None:
        self.came[what] += number
        self.used[what] += number

    def leave(self, what: What, where: str, reason: str, detail: str = "", by_rule: bool = True) -> None:
        """reason: the same words for all of a kind; detail: of this one."""
        self.came[what] += 1
        self.left.setdefault(what, Counter())[reason] += 1
        row = {"what": what, "where": where, "reason": reason, "detail": detail, "by_rule": by_rule}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def refuse(self, what: What, refusal: Refusal) -> None:
        reason = _DETAIL.split(refusal.reason)[0]
        detail = refusal.reason.removeprefix(reason).strip(" ;:") + (f" {refusal.excerpt}" if refusal.excerpt else "")
        self.leave(what, refusal.where, reason, detail.strip(), refusal.by_rule)

    def as_dict(self) -> dict[str, Any]:
        """By kind: came, used, left_out by reason (the commonest first). AssertionError where they do not add up."""
        for what, came in self.came.items():
            assert came == self.used[what] + sum(self.left.get(what, {}).values()), f"{what}: {came} came, {self.used[what]} used"
        return {
            what: {"came": self.came[what], "used": self.used[what], "left_out": dict(self.left.get(what, Counter()).most_common())}
            for what in get_args(What)
            if what in self.came
        }
