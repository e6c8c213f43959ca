"""The winner: its full experiment file, ready to run, and its one look at the test questions."""

from pathlib import Path
from typing import Any

import yaml

from data.ground.durable import write_text
from data.records import Corpus
from evaluation.exam import Exam, build_exam
from evaluation.score_files import Score, TrainedArm, read_score, score_stem
from experiment import Experiment
from experiment_yaml import changed_values
from trainer.store.stages import StageStore
from tune.config import SearchConfig
from tune.deciding.ledger import Row
from tune.deciding.space import arm_alone, in_words
from tune.report.show import metric_text, unit

TEST = "test"
"""The folder of the one look at the test, below the search's."""


def write_winner(folder: Path, values: dict[str, Any], arm: str, search: SearchConfig, row: Row) -> Path:
    """winner.yaml: the experiment with the winner's values in their places, the searched arm alone. It has the name of the search, so its
    stages are there already and `python -m trainer winner.yaml` goes straight to the full exam."""
    assert row.last
    content = changed_values(arm_alone(values, arm), row.values)
    content["exam"] = {"validation_seed": values.get("seed", 0), **(content.get("exam") or {})}
    head = [
        f"# Trial {row.id} of the search {values['name']}: {in_words(row.values)}.",
        f"# {search.metric} on the questions to choose by: {metric_text(search, row.last.score)} {unit(search)}.",
        "# exam.validation_share and validation_seed stay: those questions have chosen these values, so the exam does not ask them, whatever the seed.",
    ]
    path = folder / "winner.yaml"
    write_text(path, "\n".join(head) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
    return path


def test_exam(experiment: Experiment, test: Corpus) -> Exam:
    """The questions that nothing was chosen by, closed book."""
    return build_exam(test, experiment.exam.model_copy(update={"looks": []}), experiment.seed, ("closed",))


def candidates(run_folder: Path, row: Row, base: dict[str, Any]) -> list[TrainedArm]:
    """The base (as base.json has it) and the winner as the exam takes them; the winner not where its weights are gone."""
    start = str(run_folder.resolve() / base["hf"])  # an absolute path stays as it is
    found = [TrainedArm("base", start, base["weights"], None, False, {"hf": start, "template": base["template"]})]
    if winner := StageStore(run_folder).manifest(row.stages[-1]):
        hf = str(run_folder.resolve() / row.hf)
        found.append(TrainedArm(row.id, hf, winner["weights_sha256"], None, False, {"hf": hf, "template": row.template}))
    return found


def known_tests(folder: Path, arms: list[TrainedArm], exam: Exam) -> dict[str, Score]:
    """Exams on the test that have been written: nobody sits one twice."""
    stems = {arm.name: score_stem(folder / TEST, arm, exam.fingerprint(arm.template)) for arm in arms}
    return {name: score for name, stem in stems.items() if (score := read_score(stem))}
