"""Arrays to the device that computes, without waiting for it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def on_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """To a GPU through page-locked memory: the copy takes its turn among the kernels, and this side goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
