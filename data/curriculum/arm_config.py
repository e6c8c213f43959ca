"""Settings of what is compared: an arm's curriculum, the dials of presets, models put together from others."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.config import Stage
from data.ground.adapters import Adapter
from data.ground.strict import Strict
from data.ground.teaching import Anchor, Teach


class Dials(Strict):
    """The values that the paper's presets leave open (arXiv 2402.12847; its 7B values are the defaults)."""

    batch_items: Annotated[int, Field(ge=1)] = 256
    rate_documents: Annotated[float, Field(gt=0)] = 3e-5
    """Wherever documents occur."""
    rate_questions: Annotated[float, Field(gt=0)] = 5e-6
    """Stages of questions alone."""
    epochs_documents: Annotated[int, Field(ge=1)] = 10
    epochs_instruction: Annotated[int, Field(ge=1)] = 1
    """Questions after documents."""
    epochs_pit: Annotated[int, Field(ge=1)] = 3
    """The stage before the new documents; also the one stage of `mix`."""
    sample_questions: Annotated[int, Field(ge=0)] = 64
    """Mixed into continued pre-training on documents."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    wordings: Annotated[int, Field(ge=1)] = 1
    """In which questions are trained, riding ones too."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Replay documents in every stage, as a stage's own field."""
    sample_replay_questions: Annotated[int, Field(ge=0)] = 0
    """Replay questions in every epoch of every stage."""


_MASKED = ("donor", "breadcrumbs")


class Merge(Strict):
    """An arm that is not trained but added up from others once they are trained (docs/residual.md). Each of the three models is `base`
    (the model before the arms), an arm, or one of the experiment's `models`."""

    of: str
    """What is added to: a descendant of `base`."""
    instruct: str
    base: str = "base"
    """What `instruct` was made from: the residual is instruct − base."""
    method: Literal["residual", "donor", "ties", "dare_ties", "dare_linear", "breadcrumbs"] = "residual"
    """`residual`: of + scale × (instruct − base). `donor`: the same without the largest differences (`mask`), for an earlier checkpoint `base` that was
    tuned to `instruct`. The others through mergekit, in an environment of its own (make mergekit)."""
    scale: Annotated[float, Field(ge=0)] | Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] = 1.0
    """Of the residual. Several: an arm each, `<arm>_050` for 0.5."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each difference that is kept: by `dare_…` at random, else the largest. Empty: 0.5, of `donor` 1."""
    mask: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of each tensor's differences, the largest, that `donor` and `breadcrumbs` leave out."""
    new_tokens: Literal["instruct", "descendant"] = "instruct"
    """Whose rows tokens get that `of` and `instruct` know and `base` does not."""

    @model_validator(mode="after")
    def makes_sense(self) -> "Merge":
        if self.method == "residual" and self.density is not None:
            raise ValueError("density is of the other methods; a residual is added whole")
        if self.method == "breadcrumbs" and self.kept + self.mask > 1:
            raise ValueError("breadcrumbs: density and mask are more than 1 together, and mergekit would mask less")
        if self.method not in _MASKED and self.mask != Merge.model_fields["mask"].default:
            raise ValueError("mask is of donor and breadcrumbs")
        if isinstance(self.scale, list) and len({percent(scale) for scale in self.scale}) < len(self.scale):
            raise ValueError("scale: two of them are the same to a hundredth")
        if self.instruct == self.base:
            raise ValueError("instruct and base are the same: there is nothing to add")
        return self

    @property
    def kept(self) -> float:
        """`density`, or what stands for it where it is empty."""
        return self.density if self.density is not None else 1.0 if self.method in ("residual", "donor") else 0.5

    @property
    def by_mergekit(self) -> bool:
        return self.method not in ("residual", "donor")

    def used(self) -> dict[str, Any]:
        """What of its settings makes a difference to the weights."""
        density = {} if self.method == "residual" else {"density": self.kept}
        mask = {"mask": self.mask} if self.method in _MASKED else {}
        return {**self.model_dump(include={"method", "scale", "new_tokens"}), **density, **mask}

    def in_words(self) -> str:
        scales = self.scale if isinstance(self.scale, list) else [self.scale]
        times = "" if scales == [1] else f"{', '.join(f'{scale:g}' for scale in scales)} × "
        masked = f", the largest {self.mask:.3g} masked" if self.method in _MASKED else ""
        how = "" if self.method == "residual" else f", {self.method} with density {self.kept:g}{masked}"
        return f"{self.of} + {times}({self.instruct} − {self.base}){how}"


def percent(scale: float) -> str:
    """The end of a swept arm's name: 0.5 → "050"."""
    return f"{round(100 * scale):03d}"


class Arm(Strict):
    """One curriculum: a preset with some dials turned, or stages written out; or a model put together from others."""

    preset: str | None = None
    dials: dict[str, int | float] = {}
    """Overrides of the experiment's dials for this arm."""
    stages: list[Stage] = []
    adapter: Adapter | None = None
    """Of the arm's own stages, where they do not say otherwise; `full`: all weights, whatever trainer.adapter says."""
    teach: Teach | None = None
    """Of those of the arm's own stages that train what it acts on, where they do not say otherwise."""
    anchor: Anchor | None = None
    """The same."""
    model: str | None = None
    """One of the experiment's `models` to start from, instead of its model; without a curriculum it is examined as it is."""
    merge: Merge | None = None

    @model_validator(mode="after")
    def one_form(self) -> "Arm":
        if self.merge and (self.preset or self.stages or self.model or self.dials or self.adapter or self.teach or self.anchor):
            raise ValueError(
                "merge: is put together from trained arms; it takes no model, preset, dials, stages or adapter of its own, and no teacher"
            )
        if (self.preset and self.stages) or not (self.preset or self.stages or self.merge or self.model):
            raise ValueError("give either a preset or stages")
        if self.dials and not self.preset:
            raise ValueError("dials belong to presets; write the values into the stages")
        return self

    def with_teachers(self, stages: list[Stage]) -> list[Stage]:
        """The arm's own stages, round by round, each with the arm's teacher and anchor where it says nothing of its own (null: none) and they act on something.
        ValueError where they nowhere do."""
        made = []
        for stage in stages:
            of_arm = {name: getattr(self, name) for name in ("teach", "anchor") if name not in stage.model_fields_set}
            whole = stage.model_copy(update=of_arm)
            kept = {"teach": whole.teach if whole.taught_kinds() else None, "anchor": whole.anchor if whole.anchored_kinds() else None}
            made.append(Stage.model_validate({**stage.model_dump(exclude_unset=True), **kept}) if any(kept.values()) else stage)
        if self.teach and not any(stage.teach for stage in made):
            raise ValueError("teach: no stage of the arm trains what it acts on")
        if self.anchor and not any(stage.anchor for stage in made):
            raise ValueError("anchor: no stage of the arm trains replay items; give the dials replay_share or sample_replay_questions")
        return [one for stage in made for one in stage.rounds()]
