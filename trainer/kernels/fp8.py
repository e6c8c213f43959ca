"""Matrix products of the decoder layers in 8-bit floats, one scale a tensor: torchao's, for GPUs that multiply them (trainer/step/switches.py refuses it elsewhere).

Weights, their gradients and the optimiser stay as they are: what is rounded to 8 bits is what goes into a product. Embeddings, norms and the output head keep bf16.
"""

from typing import Any

import torch

from trainer.kernels.layers import inner_layers

_MULTIPLE = 16
"""What both sides of a weight must divide by; the tokens of a row are padded to it."""


def to_fp8(module: torch.nn.Module) -> list[str]:
    """Puts torchao's linear layers in the place of those inside the decoder layers; the parameters stay the same objects under the same names. Before an engine
    wraps the model. → names of the layers.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config: Any = Float8LinearConfig(pad_inner_dim=True)  # tensorwise, dynamic scales: torchao's defaults
    names: list[str] = []
    for number, layer in enumerate(inner_layers(module)):

        def fits(part: torch.nn.Module, name: str, number: int = number) -> bool:
            if not isinstance(part, torch.nn.Linear) or any(size % _MULTIPLE for size in part.weight.shape):
                return False
            names.append(f"{number}.{name}")
            return True

        convert_to_float8_training(layer, config=config, module_filter_fn=fits)
    return names
