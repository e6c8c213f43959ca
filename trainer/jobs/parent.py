"""The run that an experiment starts from (`base: runs/NAME:ARM`): found, checked, or refused in one line."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import UserError
from data.corpus.changes import RECORDS, run_and_arm
from data.tokens import load_tokenizer
from trainer.config import ModelConfig, TinyModel
from trainer.jobs.prepare import Identity
from trainer.network.text_config import SIZES, read_config, text_settings

_ARCHITECTURE = (*SIZES, "vocab_size", "tie_word_embeddings")


@dataclass(frozen=True)
class Parent:
    """One trained arm of another run."""

    text: str
    """As the experiment names it."""
    folder: Path
    arm: str
    hf: Path
    """Its weights for users, with config and tokenizer."""
    stage: Path | None
    """The folder of its last stage, where the fp32 weights are; None for a base that was never trained."""

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def identity(self) -> Identity:
        """What stands for the initial weights in the first stage's key: the stage it starts from, and the weights that came out of it."""
        assert self.stage is not None
        facts = [self.stage.name, _read(self.stage / "manifest.json")["weights_sha256"]]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return Identity(key, key)


def find_parent(text: str) -> Parent:
    """`runs/NAME:ARM`, or `runs/NAME` of a run with one arm. UserError where there is no such run or arm, or its weights are gone."""
    folder, arm = run_and_arm(text)
    listed = folder / "arms.json"
    if not listed.is_file():
        raise UserError(f"base: {text}: no trained run lies there (no {listed}); train it first, or mend the path")
    arms: dict[str, Any] = _read(listed)["arms"]
    named = [name for name in arms if name != "base"]
    if not arm and len(named) == 1:
        arm = named[0]
    if arm not in arms:
        why = f"has no trained arm {arm!a}" if arm else f"has {len(named)} arms"
        raise UserError(
            f"base: {text}: the run {why}; name one, e.g. base: {folder}:{(named or ['base'])[0]} (there are: {', '.join(arms)})"
        )
    hf = (folder / arms[arm]["hf"]).resolve()
    stage = (folder / "stages" / arms[arm]["stage"]).resolve() if arms[arm]["stage"] else None
    if not hf.is_dir() or (stage and not (stage / "manifest.json").is_file()):
        raise UserError(f"base: {text}: the weights of that arm are gone ({hf}); train it again")
    return Parent(text, folder.resolve(), arm, hf, stage)


def check_same_model(parent: Parent, model: ModelConfig, described: Path | None) -> None:
    """UserError where the experiment's model is another one than the parent's.

    `described`: config and tokenizer of a named model; a tiny one is known by its settings, and takes the parent's tokenizer.
    """
    theirs = text_settings(parent.hf)
    if model.tiny:
        ours = _tiny(model.tiny)
        told = {key: theirs.get(key) for key in ours}
    else:
        assert described is not None
        whole = read_config(described)
        named = whole.get_text_config().to_dict()
        keys = [key for key in _ARCHITECTURE if key != "tie_word_embeddings" or "text_config" not in whole.sub_configs]  # the files say
        ours, told = ({key: of.get(key) for key in keys} for of in (named, theirs))
    if differing := [key for key in ours if ours[key] != told[key]]:
        key = differing[0]
        raise UserError(
            f"base: {parent.text}: another architecture: {key} is {told[key]} there and {ours[key]} in this experiment's model; "
            "give the model that the run was trained from"
        )
    if described is not None:
        _check_same_tokenizer(parent, described)


def _check_same_tokenizer(parent: Parent, described: Path) -> None:
    ours, theirs = load_tokenizer(str(described)), load_tokenizer(str(parent.hf))
    same = _reading(ours) == _reading(theirs)
    if not same or (ours.bos_token_id, ours.eos_token_id) != (theirs.bos_token_id, theirs.eos_token_id):
        raise UserError(
            f"base: {parent.text}: another tokenizer than this experiment's model has ({described}): its weights would read other words; "
            "give the model that the run was trained from"
        )


def _reading(tokenizer: Any) -> dict[str, Any]:
    """All but what is put around texts, which `model.bos` may change."""
    return {**json.loads(tokenizer.backend_tokenizer.to_str()), "post_processor": None}


def _tiny(tiny: TinyModel) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": tiny.hidden_size,
        "num_hidden_layers": tiny.layers,
        "head_dim": tiny.head_size,
        "max_position_embeddings": tiny.max_positions,
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
