"""Questions that stand behind their document while they are trained (`open_share` of a stage)."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from console import UserError
from data.config import Stage
from data.curriculum.catalogue import Catalogue
from data.curriculum.plan import Plan
from data.rows.token_store import TokenStore, open_store
from data.wording.templates import PASSAGES


@dataclass(frozen=True)
class Passages:
    """What a stage's streams must know of them; paths are on storage that all nodes share."""

    links: str
    """A file of item numbers: for each item that of its document, or -1."""
    tokens: str
    """Folder of the token store, in the plain wording."""
    share: float
    starts: int
    """Tokens of a question that stand before its passage (`<bos>`, or a chat's frame)."""

    def opened(self) -> tuple[npt.NDArray[np.int64], TokenStore]:
        """(the document of each item, the documents' tokens as passages)."""
        return _opened(self.links, self.tokens)


@lru_cache(maxsize=4)
def _opened(links: str, tokens: str) -> tuple[npt.NDArray[np.int64], TokenStore]:
    return np.load(links, allow_pickle=False), open_store(Path(tokens)).worded(PASSAGES)


def passages_of(stage: Stage, catalogue: Catalogue, tokens: Path, starts: int, folder: Path) -> tuple[str, Passages] | None:
    """(identity of what stands before what, for keys; the passages) of a stage, or None; the links are written to `folder`."""
    if not stage.open_share:
        return None
    digest = hashlib.sha256(catalogue.document_of.tobytes() + open_store(tokens).worded(PASSAGES).sha256.encode()).hexdigest()[:16]
    path = folder / f"documents-{digest}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.npy")
        np.save(draft, catalogue.document_of)
        draft.replace(path)
    return digest, Passages(str(path.resolve()), str(tokens.resolve()), stage.open_share, starts)


def with_passages(plan: Plan, store: TokenStore, passages: Passages, catalogue: Catalogue, longest: int) -> npt.NDArray[np.int64]:
    """Tokens of each item of the catalogue, with its document where it may have one before it. UserError where that is too long to train."""
    documents, texts = passages.opened()
    lengths = store.item_lengths + np.where(documents >= 0, texts.lengths[documents], 0)
    present = np.unique(plan.items)
    if (long := present[(documents[present] >= 0) & (lengths[present] > longest)]).size:
        raise UserError(
            f"open_share: {catalogue.ids[int(long[0])]} has {lengths[long[0]]} tokens behind its document, and a row and the model's positions hold "
            f"{longest}: raise trainer.row_tokens where the model allows it, or cut the documents (so {len(long)} items)"
        )
    return np.asarray(lengths)
