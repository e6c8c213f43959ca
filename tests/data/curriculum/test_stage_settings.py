"""Settings of a stage: which are in its key, and which contradict each other."""

import pytest
from pydantic import ValidationError

from data.config import Stage
from data.curriculum.arm_config import Dials
from data.curriculum.presets import preset_stages
from data.ground.teaching import Before
from tests.data.curriculum.test_plan_language import stage
from trainer.store.stages import stage_facts


def test_stage_key_holds_new_settings_only_where_they_are_set() -> None:
    before = {"rate": 1e-3, "schedule": "cosine", "final_rate_share": 0.1, "warmup_steps": 0, "loss": "example"}
    assert stage_facts(stage()) == before
    new = {
        "loss_on": "everything",
        "other_weight": 0.5,
        "template": "alpaca",
        "prefix": "title",
        "input_noise": 0.2,
        "sentence_shuffle": True,
        "freeze_share": 0.5,
        "warmup_share": 0.1,
        "adapter": {"r": 8, "use_dora": True},
        "wordings": 3,
        "passages": {"document": 0.5},
    }
    for name, value in new.items():
        assert stage_facts(stage(**{name: value})) == {**before, name: value}
    assert stage_facts(stage(decay_share=0.3)) == before  # a cosine has no decay share
    assert stage_facts(stage(schedule="wsd", decay_share=0.3)) == {**before, "schedule": "wsd", "decay_share": 0.3}
    assert stage_facts(stage(freeze_share=0.5, freeze_round=0)) == {**before, "freeze_share": 0.5, "freeze_round": 0}
    assert stage_facts(stage(adapter={"r": 8}))["adapter"] != stage_facts(stage(adapter={"r": 16}))["adapter"]
    assert stage_facts(stage(teach={"share": 0.25}))["teach"] == {"share": 0.25}
    assert stage_facts(stage(anchor={"weight": 2}, replay_share=0.5))["anchor"] == {"weight": 2.0}
    held_by_the_plan = {"mix", "order", "sample_questions", "epochs", "steps", "batch_items", "batch_tokens"}
    held_by_the_plan |= {"sample_replay_questions", "replay_share", "best_share", "sources"}
    assert set(Stage.model_fields) == {
        *before,
        *new,
        "adapter",
        "decay_share",
        "freeze_round",
        "teach",
        "anchor",
        *held_by_the_plan,
    }  # a new field must be sorted into one of these


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 5}, "either epochs or steps"),
        ({"epochs": None}, "either epochs or steps"),
        ({"batch_tokens": 5}, "either batch_items or batch_tokens"),
        ({"epochs": None, "steps": 5, "order": "spaced"}, "needs epochs, not steps"),
        ({"mix": {"train_questions": 1}, "input_noise": 0.2}, "acts on documents"),
        ({"mix": {"train_documents": 1}, "template": "alpaca"}, "acts on questions"),
        ({"mix": {"train_documents": 1}, "order": "by_level", "sample_questions": 3}, "needs questions in the mix"),
    ],
)
def test_settings_that_contradict_or_do_nothing_are_refused(changes: dict, reason: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValidationError, match=reason):
        stage(**changes)


def test_dials_that_a_user_gives_win_over_what_a_preset_fixes() -> None:
    [plain] = preset_stages("interleaved", Dials())
    assert (plain.rate, plain.batch_items, plain.epochs, plain.schedule, plain.loss_on, plain.template) == (
        2e-4,
        8,
        3,
        "linear",
        "everything",
        "alpaca",
    )
    [turned] = preset_stages("interleaved", Dials(rate_documents=1e-5))
    assert (turned.rate, turned.batch_items) == (1e-5, 8)


def test_stages_of_earlier_builds_are_read() -> None:
    """Their manifests name every field, and passages.document was open_share."""
    plain = stage()
    assert Stage.model_validate({**plain.model_dump(), "open_share": 0.0}) == plain
    assert Stage.model_validate({**plain.model_dump(exclude={"passages"}), "open_share": 0.4}).passages == Before(document=0.4)
