"""Rows of embeddings matched by token string: which row of which model makes which row of the result.

| a token is in | its row |
|---|---|
| base, instruct and descendant | descendant + scale × (instruct − base) |
| instruct alone | the instruct model's |
| descendant alone | the descendant's |
| instruct and descendant, not base | the instruct model's, or the descendant's: `new_tokens` |
| base and instruct, not descendant | refused: that is no descendant |
| instruct's tokens and descendant's, neither within the other | refused: no tokenizer knows both |

Rows without a meaning – padding, and tokens that only keep a number free – are matched by number. A token that another model lacks, but for whose
number it has such a free row, is matched with that row: it has been renamed, as `<|reserved_special_token_2|>` was between Llama 3 and 3.1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from console import UserError
from trainer.merging.residual.models import Rows, Vocabulary

NewTokens = Literal["instruct", "descendant"]
_EXAMPLES = 3


def rows_of_base(instruct: Vocabulary, base: Vocabulary) -> tuple[Rows, list[str]]:
    """Of each row of the instruct model the base's row, −1 where it has none; and what there is to say."""
    rows = np.array([_partner(base, instruct, row) for row in range(instruct.rows)], np.int64)
    notes = []
    if grown := [token for row, token in sorted(instruct.token_at.items()) if rows[row] < 0]:
        notes.append(f"{_counted(grown)} only in the instruct model: the instruct model's rows are kept whole")
    if lost := [token for token in base.row_of if instruct.row_for(token, base.row_of[token]) < 0]:
        notes.append(f"{_counted(lost)} only in the base: no residual")
    return rows, notes + _renamed(instruct, base, "the base")


def _partner(theirs: Vocabulary, ours: Vocabulary, row: int) -> int:
    token = ours.token_at.get(row)
    return theirs.row_for(token, row) if token is not None else row if theirs.is_free(row) else -1


def _renamed(ours: Vocabulary, theirs: Vocabulary, who: str) -> list[str]:
    renamed = [token for token, row in ours.row_of.items() if token not in theirs.row_of and theirs.is_free(row)]
    return [f"{_counted(renamed)} matched with the free row of the same number in {who}"] if renamed else []


def _counted(tokens: list[str]) -> str:
    shown = ", ".join(f"{token!a}" for token in tokens[:_EXAMPLES]) + (", …" if len(tokens) > _EXAMPLES else "")
    return f"{len(tokens):,} token{'s' if len(tokens) > 1 else ''} ({shown})"


@dataclass(frozen=True)
class RowMap:
    """How the vocabulary tensors of the result are put together; arrays of one value a row of the result."""

    tokenizer_of: NewTokens
    """Whose tokenizer, and so whose numbers, the result has."""
    descendant: Rows
    """Row of the descendant, −1: none."""
    residual: Rows
    """Row of the residual, −1: none."""
    is_sum: Any
    """(rows,) bool: descendant + scale × residual."""
    is_instruct: Any
    """(rows,) bool: the residual's row as it is, which is the instruct model's. Where neither: the descendant's row, or zeros."""
    notes: list[str]

    @property
    def is_plain(self) -> bool:
        """Every row is the sum of the rows of its number."""
        same = np.arange(len(self.descendant))
        return bool(self.is_sum.all() and (self.descendant == same).all() and (self.residual == same).all())


def match_rows(instruct: Vocabulary, has_base: Any, descendant: Vocabulary, new_tokens: NewTokens, name: str) -> RowMap:
    """`has_base`: (rows of the residual,) bool: it is instruct − base there, else the instruct model's own row. UserError as in the table above."""
    foreign = [token for token, row in instruct.row_of.items() if descendant.row_for(token, row) < 0]
    if torn := [token for token in foreign if has_base[instruct.row_of[token]]]:
        raise UserError(
            f"{name}: lacks {_counted(torn)} that the base has: it is no descendant of that base; give one that was trained from it"
        )
    # By name: a tokenizer that lacks one cannot be the result's.
    own = [token for token in descendant.row_of if token not in instruct.row_of]
    theirs_alone = [token for token in instruct.row_of if token not in descendant.row_of]
    if theirs_alone and own:
        raise UserError(
            f"{name}: it has {_counted(own)} that the instruct model lacks, and lacks {_counted(theirs_alone)} that the instruct model has: "
            "no tokenizer knows both; train the descendant with the instruct model's tokenizer"
        )
    target, partner = (descendant, instruct) if own else (instruct, descendant)
    ours = np.arange(target.rows, dtype=np.int64)
    theirs = np.array([_partner(partner, target, row) for row in range(target.rows)], np.int64)
    rows_d, rows_r = (ours, theirs) if own else (theirs, ours)
    has_delta = (rows_r >= 0) & np.where(rows_r >= 0, np.asarray(has_base)[rows_r], False)
    is_sum = has_delta & (rows_d >= 0)
    # A token of both that the base lacks: `new_tokens` says whose. One that the descendant lacks (by name): the instruct model's.
    named_in_both = np.array([target.token_at.get(row) in partner.row_of for row in range(target.rows)], bool)
    of_instruct = (rows_r >= 0) & ~has_delta
    is_instruct = of_instruct & (named_in_both & (new_tokens == "instruct") | ~named_in_both & (not own))
    notes = []
    if foreign:
        notes.append(f"{_counted(foreign)} only in the instruct model: its rows")
    if own:
        notes.append(f"{_counted(own)} only in the descendant: its rows, and its tokenizer with the instruct model's chat template")
    if both := [target.token_at[int(row)] for row in np.flatnonzero(of_instruct & named_in_both)]:
        notes.append(f"{_counted(both)} in both and not in the base: the {new_tokens}'s rows (--new-tokens)")
    empty = int(((rows_d < 0) & ~is_instruct).sum())
    if empty:
        notes.append(f"{empty:,} padded rows that the descendant lacks: zeros")
    if instruct.rows != descendant.rows:
        notes.append(f"{descendant.rows:,} rows in the descendant, {instruct.rows:,} in the instruct model, {target.rows:,} in the result")
    notes += _renamed(instruct, descendant, "the descendant") if not own else _renamed(descendant, instruct, "the instruct model")
    return RowMap("descendant" if own else "instruct", rows_d, rows_r, is_sum, is_instruct, notes)
