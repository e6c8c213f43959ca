"""torch's own attention for flat rows, whose arguments differ from release to release: asked once what this torch's takes.

torch 2.10 knows `is_causal` and takes its scale from the head size; 2.11 has `window_size` and `scale` instead; 2.12 wants to be told of fewer key heads than heads by
`enable_gqa`, which the kernel took before without a word (tests/trainer/kernels/test_varlen.py records the three signatures).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor


class Varlen:
    """One release's function, called alike. Compiled code calls it too: nothing is asked here that was not asked when it was made."""

    def __init__(self, function: Callable[..., Any]) -> None:
        known = inspect.signature(function).parameters
        self._function = function
        self.has_windows = "window_size" in known
        self._takes_scale = "scale" in known
        self._asks_for_groups = "enable_gqa" in known

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, scale: float | None, window: int | None
    ) -> Tensor:
        """query (T, heads, head size), key and value (T, key heads, head size), boundaries (items + 1,) in int32 → (T, heads, head size).

        Causal within each item, none of which is longer than `longest`; `window`: a token sees itself and window − 1 before it; None: all.
        """
        more: dict[str, Any] = {}
        if self.has_windows:
            more["window_size"] = (-1 if window is None else window - 1, 0)
        else:
            assert window is None, "refused in trainer/network/families.py"
            more["is_causal"] = True
        if self._takes_scale:
            more["scale"] = scale
        elif scale is not None:
            query = query * (scale * math.sqrt(query.shape[-1]))
        if self._asks_for_groups:
            more["enable_gqa"] = query.shape[1] != key.shape[1]
        return self._function(query, key, value, boundaries, boundaries, longest, longest, **more)  # type: ignore[no-any-return]


def _of_this_torch() -> Varlen | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return Varlen(varlen_attn)


VARLEN = _of_this_torch()
"""None: this torch has none."""
