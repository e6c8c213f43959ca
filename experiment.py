"""One file describes one experiment: loading, overriding, and refusing it with the line that is wrong.

Imports no torch, no ray, no vllm: a laptop refuses a bad experiment in a second.
The whole `Experiment` stops at the doors (the `__main__` files); inside the rooms a function gets the few values it uses.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from console import UserError
from data.config import DataConfig, Stage
from data.corpus.changes import RECORDS, run_and_arm
from data.curriculum.arm_config import Arm, Dials, Merge, percent
from data.curriculum.presets import PRESETS, preset_stages
from data.ground.adapters import Adapter
from data.ground.strict import Strict
from evaluation.config import ExamConfig
from experiment_yaml import (
    ExperimentError,
    changed_values,
    deeper,
    keys_beside,
    line_at,
    line_of,
    merged,
    parse,
    parse_override,
    place_of,
    plain,
    refuse_duplicate_keys,
    set_value,
    short,
    shown_key,
    suggestion,
)
from trainer.config import ModelConfig, TrainerConfig
from tune.config import SearchConfig


class Update(Arm):
    """One round of an experiment that goes on: other data, and the curriculum for what is new or changed in them (docs/curricula.md)."""

    data: dict[str, Any] = {}
    """What differs from the data of the round before, e.g. {root: DIR} or {sources: […]}; mappings inside are merged key by key."""
    after: str | None = None
    """The first update only: the arm of the experiment that it starts from; may be left out where there is one arm."""


class Experiment(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder: runs/<name>."""
    about: str = ""
    """One line for people."""
    seed: int = 0
    runs: str = "runs"
    """Where run folders lie; on a cluster, storage that every node shares."""
    data: DataConfig
    model: ModelConfig
    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], ModelConfig] = {}
    """Further models of the same architecture and vocabulary, for arms that start from them (`model:`) or are put together with them (`merge:`)."""
    dials: Dials = Dials()
    """What the presets of all arms use unless an arm says otherwise."""
    base: list[Stage] = []
    """Stages before every arm, trained once. Or, as a text, the run to start from: `base: runs/NAME:ARM` (`runs/NAME` where it has one
    arm); then only what differs from that run's documents is new, and the rest is the replay split (data/corpus/changes.py)."""
    base_run: str | None = None
    """Where `base` is a text. Not to be written itself."""
    arms: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Arm], Field(min_length=1)]
    """Curricula to compare, by name."""
    updates: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Update] = {}
    """Rounds after the experiment, in their order; each starts from the weights and the records of the one before."""
    trainer: TrainerConfig = TrainerConfig()
    exam: ExamConfig = ExamConfig()
    search: SearchConfig | None = None
    """For `python -m tune`; the other commands do not look at it."""

    @model_validator(mode="before")
    @classmethod
    def base_is_stages_or_a_run(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("base"), str):
            if not values["base"].strip():
                raise ValueError("base: is empty; give stages, or the run to start from: base: runs/NAME:ARM")
            return {**values, "base": [], "base_run": values["base"].strip()}
        if isinstance(values, dict) and "base_run" in values:
            raise ValueError("base_run: unknown key; write the run to start from as base: runs/NAME:ARM")
        return values

    @model_validator(mode="after")
    def arms_resolve(self) -> "Experiment":
        if "base" in self.arms:
            raise ValueError("no arm may be called base: that is the model before the arms, and is examined anyway")
        for name in self.arms:
            self.stages(name)
        self._models_are_known()
        compared = ["base", *(name for name, arm in self.arms.items() if not arm.merge), *self.merges()]
        if "compare_to" in self.exam.model_fields_set and self.exam.compare_to not in compared:
            raise ValueError(f"exam.compare_to: no arm is called {self.exam.compare_to!r}{suggestion(self.exam.compare_to, compared)}")
        if self.updates:
            self.rounds()
        if "wordings" in self.exam.looks and self.data.bios is None and self.data.wordings is None:
            raise ValueError("exam.looks: wordings needs data.bios, or data.wordings: a file that python -m data wordings writes")
        return self

    def rounds(self) -> "list[Experiment]":
        """The updates as experiments of their own, `<name>-<update>`: one arm each, starting from the round before."""
        rounds: list[Experiment] = []
        before, arm = self, ""
        for number, (name, update) in enumerate(self.updates.items()):
            if number == 0:
                if update.after is None and len(self.arms) > 1:
                    raise ValueError(f"updates.{name}.after: say which arm it starts from: {', '.join(self.arms)}")
                arm = update.after or next(iter(self.arms))
                if arm not in self.arms or self.arms[arm].merge:
                    raise ValueError(f"updates.{name}.after: no trained arm is called {arm!r}{suggestion(arm, self.arms)}")
            elif update.after is not None:
                raise ValueError(
                    f"updates.{name}.after: only the first update names an arm; this one starts from {list(self.updates)[number - 1]}"
                )
            try:
                data = DataConfig.model_validate(merged(before.data.model_dump(exclude_unset=True), update.data))
            except ValidationError as error:
                raise ValueError(f"updates.{name}.data: {plain(error.errors()[0])}") from None
            if update.merge or update.model:
                raise ValueError(f"updates.{name}.{'merge' if update.merge else 'model'}: an update trains the model of the round before")
            described = Arm.model_validate(update.model_dump(exclude={"data", "after"}, exclude_unset=True))
            changes = {
                "name": f"{self.name}-{name}", "data": data, "base": [], "base_run": f"{before.folder}:{arm}", "arms": {name: described}, "updates": {},
                "exam": self.exam.model_copy(update={"compare_to": "base"}),
            }  # fmt: skip
            before, arm = self.model_copy(update=changes), name
            before.stages(name)
            rounds.append(before)
        return rounds

    def final(self, arm: str) -> "Experiment":
        """One arm on everything: the exam's documents and questions are trained with the others too, and nothing is left to examine.

        Raises UserError for made data, updates, or an arm that is not there.
        """
        if arm not in self.arms:
            raise UserError(f"--final: no arm is called {arm!r}{suggestion(arm, self.arms)}")
        if self.arms[arm].merge:
            raise UserError(f"--final: {arm} is put together from other arms; name a trained one")
        if self.data.bios or self.updates or self.base_run:
            what = "data.bios" if self.data.bios else "updates" if self.updates else "base: a run"
            raise UserError(f"--final is for an experiment of data.sources that starts from a model, and this one has {what}")
        if mixed := next((source.path for source in self.data.sources if source.split == "test" and source.holds == "both"), None):
            raise UserError(
                f"--final: {mixed} holds the exam's documents and questions in one; list it twice, as documents and as questions"
            )
        exam = [source for source in self.data.sources if source.split == "test" and source.holds != "choices"]
        # Its documents twice: the orders want every question's document in its split, and the arm's stages still read new ones.
        sources = [source for source in self.data.sources if source.split != "test"]
        sources += [source.model_copy(update={"split": "train"}) for source in exam]
        sources += [source for source in exam if source.holds == "documents"]
        # Counts and overlap speak of the splits as they were.
        data = self.data.model_copy(update={"sources": sources, "counts": {}, "sample": {}, "overlap": "allow"})
        return self.model_copy(update={"name": f"{self.name}-final", "data": data, "arms": {arm: self.arms[arm]}})

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def base_records(self) -> Path | None:
        """What the run that this one starts from has left about its records."""
        return run_and_arm(self.base_run)[0] / RECORDS if self.base_run else None

    def stages(self, arm: str) -> list[Stage]:
        """The whole curriculum of an arm, base stages first, each with the adapter that it trains. `arm` may be "base"."""
        base = [one for n, stage in enumerate(self.base) for one in self._with_adapter(stage, None, f"base.{n}").rounds()]
        self._teachers_are_known("base", base, [])
        if arm == "base":
            return base
        described = self.arms[arm]
        if described.merge:
            return []
        if described.stages:
            own = [self._with_adapter(stage, described.adapter, f"arms.{arm}.stages.{n}") for n, stage in enumerate(described.stages)]
            return [*base, *self._with_teachers(arm, own)]
        if described.preset is None:  # a model as it is
            return []
        if described.preset not in PRESETS:
            raise ValueError(f"arms.{arm}.preset: unknown preset {short(described.preset)}{suggestion(described.preset, PRESETS)}")
        try:
            dials = Dials.model_validate({**self.dials.model_dump(exclude_unset=True), **described.dials})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            hint = suggestion(key, Dials.model_fields) if first["type"] == "extra_forbidden" else ""
            raise ValueError(f"arms.{arm}.dials.{key}: {plain(first)}{hint}") from None
        preset = preset_stages(described.preset, dials)
        own = [self._with_adapter(stage, described.adapter, f"arms.{arm}.adapter") for stage in preset]
        return [*base, *self._with_teachers(arm, own)]

    def _with_teachers(self, arm: str, stages: list[Stage]) -> list[Stage]:
        try:
            made = self.arms[arm].with_teachers(stages)
        except ValidationError as error:
            raise ValueError(f"arms.{arm}: {plain(error.errors()[0])}") from None
        except ValueError as error:
            raise ValueError(f"arms.{arm}.{error}") from None
        self._teachers_are_known(f"arms.{arm}", made, ["base"] if self.base else [])
        return made

    def _teachers_are_known(self, place: str, stages: list[Stage], more: list[str]) -> None:
        """`more`: names that are none of models."""
        known = [*self.models, *more]
        for stage in stages:
            if stage.teach and stage.teach.model and stage.teach.model not in known:
                why = (
                    "is what the base stages leave, and teaches arms" if stage.teach.model == "base" and self.base else "is none of models"
                )
                raise ValueError(f"{place}: teach.model: {stage.teach.model!r} {why}{suggestion(stage.teach.model, known)}")

    def _with_adapter(self, stage: Stage, of_arm: Adapter | None, place: str) -> Stage:
        """The stage with the adapter that counts for it: its own, the arm's, the experiment's, or none."""
        chosen = next((one for one in (stage.adapter, of_arm, self.trainer.adapter) if one is not None), None)
        adapter = None if chosen is None or chosen.trains_all else chosen
        if adapter and (why := stage.refused_beside_adapter()):
            raise ValueError(f"{place}: {why}")
        if adapter and (why := adapter.refused_under(self.trainer.zero_stage)):
            raise ValueError(f"{place}: adapter: {why}")
        for name, share in adapter.drawn().items() if adapter else ():
            if why := self.trainer.refused_draw(f"adapter: {name}", share):
                raise ValueError(f"{place}: {why}")
        return stage.model_copy(update={"adapter": adapter})

    def curricula(self) -> dict[str, list[Stage]]:
        """What is trained, by arm: "base" first, without the arms that are put together from others."""
        return {"base": self.stages("base"), **{name: self.stages(name) for name, arm in self.arms.items() if not arm.merge}}

    def starts(self) -> dict[str, str]:
        """Arms that start from one of `models`, and which."""
        return {name: arm.model for name, arm in self.arms.items() if arm.model}

    def merges(self) -> dict[str, Merge]:
        """The arms that are put together, those of several scales one by one."""
        found: dict[str, Merge] = {}
        for name, arm in self.arms.items():
            if arm.merge is None:
                continue
            for role in ("of", "instruct", "base"):
                self._is_a_model(f"arms.{name}.merge.{role}", getattr(arm.merge, role))
            if not isinstance(arm.merge.scale, list):
                swept = {name: arm.merge}
            else:
                swept = {f"{name}_{percent(scale)}": arm.merge.model_copy(update={"scale": scale}) for scale in arm.merge.scale}
            if taken := [one for one in swept if one in found or (one != name and one in self.arms)]:
                raise ValueError(f"arms.{name}.merge.scale: would make a second arm {taken[0]}; rename one of them")
            found |= swept
        return found

    def _is_a_model(self, place: str, name: str) -> None:
        trained = ["base", *(arm for arm, described in self.arms.items() if not described.merge)]
        if name not in (*trained, *self.models):
            why = "is itself put together; name what it was made of" if name in self.arms else "is no trained arm and none of models"
            raise ValueError(f"{place}: {name!r} {why}{suggestion(name, [*trained, *self.models])}")

    def _models_are_known(self) -> None:
        for name, model in self.models.items():
            if model.tiny:
                raise ValueError(f"models.{name}: a tiny model is made once, as model.tiny; make variants of it as arms")
            if name in self.arms or name == "base":
                raise ValueError(f"models.{name}: an arm has this name too; rename one of them")
        for name, start in self.starts().items():
            if start not in self.models:
                raise ValueError(f"arms.{name}.model: {start!r} is none of models{suggestion(start, self.models)}")
            if self.base:
                raise ValueError(
                    f"arms.{name}.model: the stages under base make the model of all arms, and this arm starts from another one"
                )


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Reads `path` and applies overrides such as `trainer.zero_stage=3`.

    Raises ExperimentError with the file's line (or the override) and, for an unknown key, the likeliest one meant.
    """
    return read_experiment(path, overrides)[0]


def read_experiment(path: str | Path, overrides: list[str] | None = None) -> tuple[Experiment, dict[str, Any]]:
    """As load_experiment, and the values that the experiment was made of, for with_changes."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: not UTF-8 at byte {error.start}") from None
    node, values = parse(text, path)
    if not isinstance(values, dict):
        raise ExperimentError(f"{path}:1: an experiment is a mapping of keys to values")
    refuse_duplicate_keys(node, path)
    given: dict[tuple[str, ...], str] = {}
    for override in overrides or []:
        keys, value = parse_override(override)
        set_value(values, keys, value, override)
        given[keys] = override
    try:
        return Experiment.model_validate(values), values
    except ValidationError as error:
        first = error.errors()[0]
        message = plain(first)
        loc, message = deeper(node, place_of(first["loc"]), message)
        if not loc and (named := re.match(r"[\w.-]+(?=: )", message)):  # our own validators name the key in the text
            loc, message = tuple(named[0].split(".")), message[named.end() + 2 :]
        at_fault = (*map(str, loc), *message.partition(":")[0].split("."))  # our own validators name keys below loc in the text
        blame = next((text for keys, text in given.items() if keys in (tuple(map(str, loc[: len(keys)])), at_fault[: len(keys)])), None)
        at = f"override {blame}" if blame else f"{path}:{line_at(node, loc)}"
        hint = suggestion(str(loc[-1]), keys_beside(Experiment, loc)) if first["type"] == "extra_forbidden" else ""
        key = ".".join(map(shown_key, loc))
        raise ExperimentError(f"{at}: {key + ': ' if key else ''}{message}{hint}") from None


def with_changes(values: dict[str, Any], changes: dict[str, Any]) -> Experiment:
    """The experiment with other values in some places ({"dials.rate_documents": 1e-3}); `values` as read_experiment gives them, left alone.

    Raises UserError "key: reason" where a place or a value cannot be.
    """
    try:
        return Experiment.model_validate(changed_values(values, changes))
    except ValidationError as error:
        first = error.errors()[0]
        loc = place_of(first["loc"])
        hint = suggestion(str(loc[-1]), keys_beside(Experiment, loc)) if first["type"] == "extra_forbidden" else ""
        key = ".".join(map(shown_key, loc))
        raise UserError(f"{key + ': ' if key else ''}{plain(first)}{hint}") from None


@contextmanager
def located(path: str | Path) -> Iterator[None]:
    """Puts `path:line:` before a UserError that begins with a key of the experiment's file ("arms.mine.stages.0: reason")."""
    try:
        yield
    except UserError as error:
        key = re.match(r"((?:" + "|".join(Experiment.model_fields) + r")(?:\.[\w-]+)*): ", str(error))
        if key is None or isinstance(error, ExperimentError):
            raise
        raise ExperimentError(f"{path}:{line_of(path, key[1])}: {error}") from error
