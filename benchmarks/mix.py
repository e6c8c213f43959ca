"""The workload of the packing benchmarks: 80 % questions of about 110 tokens, 20 % documents of about a thousand."""

from typing import Any

import numpy as np
import numpy.typing as npt

QUESTION_TOKENS, DOCUMENT_TOKENS, DOCUMENT_SHARE = 105, 950, 0.2  # medians; the means are 109 and 1,010


def mixed_lengths(num_items: int) -> npt.NDArray[np.int64]:
    """(items,), log-normal around the two medians; a few documents are longer than a row of 2,048."""
    rng = np.random.default_rng(0)
    documents = rng.lognormal(np.log(DOCUMENT_TOKENS), 0.35, num_items)
    questions = rng.lognormal(np.log(QUESTION_TOKENS), 0.3, num_items)
    return np.where(rng.random(num_items) < DOCUMENT_SHARE, documents, questions).astype(np.int64).clip(8)


def uniform_lengths(num_items: int) -> npt.NDArray[np.int64]:
    """(items,), all within a few per cent of 900 to 1,100 tokens: where padding costs least."""
    return np.random.default_rng(0).integers(900, 1101, num_items)


def token_table(lengths: npt.NDArray[np.int64]) -> Any:
    """The pyarrow table that TRL packs: one column of lists, a byte a token, so that moving tokens costs it as little as can be."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = pa.array(np.zeros(offsets[-1], dtype=np.int8))
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), values)})
