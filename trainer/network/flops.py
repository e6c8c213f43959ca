"""Model FLOPs and utilisation (MFU). Pure."""

import re
from typing import Any

import numpy as np

from console import UserError
from trainer.network.network_size import network_size

# Dense bf16 peak of one device, FLOPs/s, from the makers' data sheets (cluster/cost/chips.py names them), half of what they give with sparsity;
# matched as whole words of torch's device name ("RTX A1000" is no A100), longer names first.
_PEAKS = {
    "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "A10G": 70e12, "A10": 125e12,
    "H20": 148e12, "B200": 2250e12, "MI300X": 1307e12, "4090": 165e12, "3090": 71e12,
}  # fmt: skip


def row_flops(config: Any, cu_seqlens: Any, causal: bool = False) -> float:
    """FLOPs of forward and backward over one row: 6 N per token (N: the weights that a token is multiplied with, of experts the chosen ones) and
    12 × heads × head size × l² per attention layer and item of l tokens.

    Attention is counted non-causal, as the published MFU figures do (PaLM, arXiv 2204.02311, appendix B); `causal`: half of it. A state space's own
    recurrence, below 2 % of its layer, is not counted. 0 for networks that nobody can count (trainer/network/network_size.py).
    """
    try:
        size = network_size(config)
    except UserError:
        return 0.0
    lengths = np.diff(cu_seqlens).astype(float)
    return 6.0 * size.products * lengths.sum() + (6.0 if causal else 12.0) * size.attention_width * float((lengths**2).sum())


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOPs/s of a known GPU, else None."""
    return next((peak for name, peak in _PEAKS.items() if re.search(rf"\b{re.escape(name)}\b", device_name)), None)
