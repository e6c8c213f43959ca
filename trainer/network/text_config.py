"""What a model folder's config says of its text model. Sizes are read here and nowhere else of config.json: files leave out what is a
default, composite configs keep it in an inner one, and some families have names of their own (GPT-2's n_positions)."""

from pathlib import Path
from typing import Any

from console import UserError
from data.ground.model_config import positions_in

SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
"""What two models have alike where the weights of one can stand for the other's."""


def read_config(folder: Path) -> Any:
    """transformers' config of a model folder, composite or not. UserError where it cannot be used."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of a broken or hostile file, the remedy is the user's
        raise UserError(f"{folder / 'config.json'}: cannot be used: {str(error).splitlines()[0]}; fetch the model again") from None


def text_config(folder: Path) -> Any:
    """The text model's, with the defaults that the file leaves out."""
    return read_config(folder).get_text_config()


def text_settings(folder: Path) -> dict[str, Any]:
    return text_config(folder).to_dict()  # type: ignore[no-any-return]


def positions(folder: Path) -> int:
    """The longest text that the model can read; a number without meaning where its config names none (state-space layers)."""
    return positions_in(text_settings(folder)) or 2**31
