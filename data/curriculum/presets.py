"""The papers' settings, a few lines each (PIT, arXiv 2402.12847, Tables 1 and 3, with its numbers in the comments; scottsus/Perpetual)."""

from typing import Any, Literal, NamedTuple

from data.config import Mix, Stage
from data.curriculum.arm_config import Dials

Role = Literal["documents", "instruction", "pit"]
"""Which dial sets a stage's epochs."""


class _Step(NamedTuple):
    mix: dict[str, int]
    role: Role
    riding: bool = False
    """Do sampled questions ride along?"""
    settings: dict[str, Any] = {}
    """What else the setting fixes; a dial that the user gives wins."""


_TRAIN = {"train_questions": 1, "train_documents": 1}
_NEW = _Step({"test_documents": 1}, "documents", riding=True)
_INSTRUCT = _Step({"train_questions": 1}, "instruction")
_PIT = _Step(_TRAIN, "pit", settings={"order": "questions_first"})
_OLD_AND_NEW = _Step({"train_documents": 1, "test_documents": 1}, "documents")

PRESETS: dict[str, list[_Step]] = {
    "cpt": [_NEW],  # 1
    "standard": [_OLD_AND_NEW, _INSTRUCT],  # 2
    "standard_no_forgetting": [_OLD_AND_NEW, _Step({"train_questions": 1, "test_documents": 1}, "instruction")],  # 3
    "mix": [_Step({**_TRAIN, "test_documents": 1}, "pit")],  # 4
    "pit_qa_only": [_Step({"train_questions": 1}, "pit"), _NEW],  # 5
    "pit_sequential": [_Step({"train_questions": 1}, "pit"), _Step({"train_documents": 1}, "documents"), _NEW],  # 6
    "pit": [_PIT, _NEW],  # 7
    "pit_plus_plus": [_INSTRUCT, _PIT, _NEW],  # 8
    "it_without_train_doc": [_NEW._replace(riding=False), _INSTRUCT],
    "weighted_cpt": [_NEW._replace(settings={"other_weight": 0.5})],
    "adapted_cpt": [_Step({"train_documents": 1}, "documents"), _NEW],
    "pit_minus_minus": [_PIT, _INSTRUCT, _NEW],
    # Perpetual: chunks and their QA as one stream, batch 2 × 4, 5 warm-up steps, Alpaca prompt, loss on everything, token mean.
    "interleaved": [
        _Step(
            _TRAIN,
            "pit",
            settings={
                "order": "documents_first",
                "batch_items": 8,
                "rate": 2e-4,
                "schedule": "linear",
                "warmup_steps": 5,
                "loss": "token",
                "loss_on": "everything",
                "template": "alpaca",
            },
        )
    ],
}


def preset_stages(name: str, dials: Dials) -> list[Stage]:
    """The stages of a preset with the dials' values filled in."""
    return [_stage(step, dials) for step in PRESETS[name]]


def _stage(step: _Step, dials: Dials) -> Stage:
    epochs = {"documents": dials.epochs_documents, "instruction": dials.epochs_instruction, "pit": dials.epochs_pit}
    rate_dial = "rate_documents" if any(kind.endswith("_documents") for kind in step.mix) else "rate_questions"
    dial_of = {"batch_items": "batch_items", "rate": rate_dial, "warmup_steps": "warmup_steps"}
    turned = {
        field: getattr(dials, dial) for field, dial in dial_of.items() if field not in step.settings or dial in dials.model_fields_set
    }
    asks = (step.riding and dials.sample_questions) or any(kind.endswith("_questions") for kind in step.mix)
    return Stage(
        mix=Mix(**step.mix),
        epochs=epochs[step.role],
        sample_questions=dials.sample_questions if step.riding else 0,
        wordings=dials.wordings if asks else 1,
        replay_share=dials.replay_share,
        sample_replay_questions=dials.sample_replay_questions,
        **{**step.settings, **turned},
    )
