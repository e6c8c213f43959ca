"""The paper's settings (arXiv 2402.12847, Table 1 and 3; PAPER numbering in the comments), a few lines each."""

from typing import Literal

from data.config import Dials, Mix, Stage

Role = Literal["documents", "instruction", "pit"]
"""Which dial sets a stage's epochs."""

# (mixture, role, do sampled questions ride along?)
_Step = tuple[dict[str, int], Role, bool]
_TRAIN = {"train_questions": 1, "train_documents": 1}
_NEW = {"test_documents": 1}
_INSTRUCT: _Step = ({"train_questions": 1}, "instruction", False)

PRESETS: dict[str, list[_Step]] = {
    "cpt": [(_NEW, "documents", True)],  # 1
    "standard": [({"train_documents": 1, "test_documents": 1}, "documents", False), _INSTRUCT],  # 2
    "standard_no_forgetting": [
        ({"train_documents": 1, "test_documents": 1}, "documents", False),
        ({"train_questions": 1, "test_documents": 1}, "instruction", False),
    ],  # 3
    "mix": [({**_TRAIN, "test_documents": 1}, "pit", False)],  # 4
    "pit_qa_only": [({"train_questions": 1}, "pit", False), (_NEW, "documents", True)],  # 5
    "pit_sequential": [
        ({"train_questions": 1}, "pit", False),
        ({"train_documents": 1}, "documents", False),
        (_NEW, "documents", True),
    ],  # 6
    "pit": [(_TRAIN, "pit", False), (_NEW, "documents", True)],  # 7
    "pit_plus_plus": [({"train_questions": 1}, "instruction", False), (_TRAIN, "pit", False), (_NEW, "documents", True)],  # 8
    "it_without_train_doc": [(_NEW, "documents", False), _INSTRUCT],
    "adapted_cpt": [({"train_documents": 1}, "documents", False), (_NEW, "documents", True)],
    "pit_minus_minus": [(_TRAIN, "pit", False), ({"train_questions": 1}, "instruction", False), (_NEW, "documents", True)],
}


def preset_stages(name: str, dials: Dials) -> list[Stage]:
    """The stages of a preset with the dials' values filled in."""
    epochs = {"documents": dials.epochs_documents, "instruction": dials.epochs_instruction, "pit": dials.epochs_pit}
    stages = []
    for mix, role, ride_along in PRESETS[name]:
        has_documents = any(kind.endswith("_documents") for kind in mix)
        stages.append(
            Stage(
                mix=Mix(**mix),
                order="questions_first" if mix == _TRAIN else "shuffled",
                sample_questions=dials.sample_questions if ride_along else 0,
                epochs=epochs[role],
                batch_items=dials.batch_items,
                rate=dials.rate_documents if has_documents else dials.rate_questions,
                warmup_steps=dials.warmup_steps,
            )
        )
    return stages
