"""What a row's stream has put on the device is known to the stream that computes: all of it."""

import numpy as np
import pytest
import torch

from trainer.step.placing import place


@pytest.mark.parametrize(("attention", "of_attention"), [("by_item", 1), ("padded_sdpa", 6), ("sdpa", 0)])
def test_every_tensor_of_a_row_is_told(attention: str, of_attention: int) -> None:
    """Three a bucket too, of which two: memory that is not told of may be given away while the kernels read it."""
    ids = np.arange(1, 49)
    row = {
        "input_ids": ids, "position_ids": ids, "loss_weight": np.ones(48, dtype=np.float32), "cu_seqlens": np.array([0, 7, 48], dtype=np.int32),
    }  # fmt: skip
    told = list(place(row, attention, torch.device("cpu")).tensors())  # type: ignore[arg-type]
    assert len(told) == 2 + of_attention + 3  # tokens and positions; positions, ids and weights of targets
