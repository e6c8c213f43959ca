"""Further models of an experiment: fetched, and checked to read the experiment's tokens as its own model does."""

import json
from pathlib import Path
from typing import Any

from console import UserError, say
from data.ground.contents import MEMORY
from data.tokens import load_tokenizer
from data.wording.begins import start_ids
from trainer.config import ModelConfig
from trainer.jobs.begun import begun_as
from trainer.jobs.hub import fetch_model, hub_folder
from trainer.jobs.prepare import Start, initial_identity
from trainer.jobs.text_model import TEXT_MODELS, text_folder
from trainer.network.model_check import check_model_folder

_READING = ("normalizer", "pre_tokenizer")


def find_models(folder: Path, models: dict[str, ModelConfig], model_folder: str, seed: int, tokens_sha256: str) -> dict[str, Start]:
    """Every one of `models` as a folder. UserError "models.NAME: reason" where one is not there or reads other tokens than `model_folder`."""
    found = {}
    for name, model in models.items():
        assert model.name is not None  # Experiment has refused tiny ones
        try:
            place = model.name if Path(model.name).is_dir() else fetch_model(model, hub_folder(folder, model))
            check_model_folder(Path(place))
            text = begun_as(text_folder(Path(place), folder / TEXT_MODELS), folder / "models-begun" / name, model.bos)
            _check_tokens(model_folder, str(text))
        except UserError as error:
            raise UserError(f"models.{name}: {str(error).removeprefix('model.name: ')}") from None
        found[name] = Start(str(text.resolve()), initial_identity(model, Path(place), seed, tokens_sha256, folder / MEMORY))
    return found


def _check_tokens(ours: str, theirs: str) -> None:
    """The records' tokens are made once, by the experiment's own tokenizer: every number must mean the same to the other model.

    Control tokens may have other names (Llama 3 and 3.1) and other roles (an instruct model ends its turns with another token).
    """
    one, other = load_tokenizer(ours), load_tokenizer(theirs)
    special = {*one.all_special_tokens, *(str(token) for token in one.added_tokens_decoder.values())}
    named = other.get_vocab()
    different = [token for token, number in one.get_vocab().items() if token not in special and named.get(token) != number]
    parts = [_parts(tokenizer) for tokenizer in (one, other)]
    if different or parts[0] != parts[1]:
        what = f"token {different[0]!a} has another number" if different else "texts are split in another way"
        raise UserError(f"{theirs}: another tokenizer than the experiment's model has ({what}): it would read other words; leave it out")
    if start_ids(one) != start_ids(other):
        raise UserError(f"{theirs}: begins texts with other tokens than the experiment's model; give both the same `bos`, or leave it out")
    if one.eos_token_id != other.eos_token_id:
        say(
            f"{theirs}: ends texts with {other.eos_token!a}; here it learns to end them with {one.eos_token!a}, as the experiment's model does"
        )


def _parts(tokenizer: Any) -> list[Any]:
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    return [*(values.get(part) for part in _READING), values["model"].get("merges")]
