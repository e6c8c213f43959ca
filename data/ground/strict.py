"""What all settings are made of."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Strict(BaseModel):
    """Frozen; unknown keys are refused (experiment.py adds the suggestion and the line)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def on_and_off_are_words(cls, values: Any) -> Any:
        """YAML 1.1 reads `compile: on` as true: where a setting knows the word, the word is meant."""
        if not isinstance(values, dict):
            return values
        found = dict(values)
        for name in [name for name, value in values.items() if isinstance(value, bool) and name in cls.model_fields]:
            word = "on" if values[name] else "off"
            found[name] = word if word in get_args(cls.model_fields[name].annotation) else values[name]
        return found
