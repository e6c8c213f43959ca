"""One examiner for all trials: a Ray actor with one vLLM engine, into which each trial's weights are loaded in turn."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import ChoiceQuestion
from evaluation.asking.choices import Asked, ask, predictions
from evaluation.engine import Engine
from evaluation.engines.options import EngineOptions
from evaluation.exam import Exam
from evaluation.examining.examine import examine_one
from evaluation.score_files import TrainedArm, closed, is_scored, read_score, score_stem
from tune.config import Metric
from tune.deciding.objective import guarded_mean, score_of


@dataclass(frozen=True)
class Sheet:
    """What every trial is asked."""

    exam: Exam
    choices: list[ChoiceQuestion]
    """Asked by letter where the metric is `choices`."""
    metric: Metric
    guard: str | None
    """The set that must not be forgotten."""
    resamples: int
    seed: int


class ExamDesk:
    """Trials wait in line: a Ray actor answers one call after the other."""

    def __init__(self, folder: str, sheet: Sheet, options: EngineOptions, leaves: bool) -> None:
        """`folder`: where scores are written; `leaves`: the engine goes after each exam, because a trial needs its GPU."""
        self._folder, self._sheet, self._options, self._leaves = Path(folder), sheet, options, leaves
        self._engine = Engine(options)

    def examine(self, name: str, hf: str, weights: str, template: str) -> dict[str, Any]:
        """{"score": see score_of, "guard": mean or None, "seconds"} of the weights in the folder `hf`; raises EngineFailure.

        What was answered before is not asked again: `weights` names them.
        """
        started = time.monotonic()
        sheet = self._sheet
        arm = TrainedArm(name, hf, weights, None, False, {"hf": hf, "template": template})
        stem = score_stem(self._folder, arm, sheet.exam.fingerprint(template))
        try:
            if not is_scored(stem):
                examine_one(arm, sheet.exam, self._folder, sheet.seed, self._options, None, self._engine)
            right = self._choose(arm) if sheet.metric == "choices" else []
        finally:
            if self._leaves:
                self.close()
        found = read_score(stem)
        assert found is not None
        score = score_of(sheet.metric, closed(found.rows, "test"), found.about["documents"], right, sheet.resamples, sheet.seed)
        guard = guarded_mean(found.rows, sheet.guard) if sheet.guard else None
        return {"score": score, "guard": guard, "seconds": time.monotonic() - started}

    def _choose(self, arm: TrainedArm) -> list[tuple[str | None, float]]:
        """(document, 1.0 where the likeliest letter is right) of each multiple-choice question, options shuffled."""
        from data.tokens import load_tokenizer
        from data.wording.begins import start_ids

        asked = [ask(question, "shuffled", self._sheet.seed) for question in self._sheet.choices]
        tokenizer = load_tokenizer(arm.path)
        start = start_ids(tokenizer)
        sequences, starts = [], []
        for one in asked:
            prompt = start + tokenizer.encode(one.prompt, add_special_tokens=False)
            for option in one.options:
                sequences.append(start + tokenizer.encode(f"{one.prompt} {option}", add_special_tokens=False))
                starts.append(min(len(prompt), len(sequences[-1]) - 1))
        self._engine.open(arm.path, arm.weights, max(map(len, sequences)) + 1)
        likelihoods = iter(self._engine.log_likelihoods(sequences, starts))
        scored = {one.id: [next(likelihoods) for _ in one.options] for one in asked}
        return [_judged(one, guess) for one, guess in zip(asked, predictions(asked, scored, "shuffled"), strict=True)]

    def sit(self, arms: list[TrainedArm], exam: Exam, folder: str) -> None:
        """Another exam, written to another folder; what has a score there is not asked again."""
        for arm in arms:
            if not is_scored(score_stem(Path(folder), arm, exam.fingerprint(arm.template))):
                examine_one(arm, exam, Path(folder), self._sheet.seed, self._options, None, self._engine)

    def close(self) -> None:
        """Ends the engine; the next exam starts another."""
        self._engine.__exit__(None, None, None)


def _judged(one: Asked, guess: int) -> tuple[str | None, float]:
    return one.doc_id, float(guess == one.gold)
