"""What the names and files of an experiment's models, data and exam show within a second, before anything is read or started."""

from pathlib import Path

from console import UserError
from data.readers import check_there
from evaluation.asking.question_files import read_questions
from experiment import Experiment
from trainer.network.model_check import check_folder_tokens, check_model_folder, check_named


def check_files(experiment: Experiment, networks: bool = False) -> None:
    """UserError for what is missing or cannot be; with `networks` also for what transformers' own networks have no place for, or lack: seconds
    more, and only for folders."""
    check_there(experiment.data)
    if experiment.exam.retention:
        try:
            read_questions(Path(experiment.exam.retention))
        except UserError as error:
            raise UserError(f"exam.retention: {error}") from None
    named = [("model.name", experiment.model), *((f"models.{name}.name", model) for name, model in experiment.models.items())]
    for place, model in named:
        check_named(place, model)
    for _, model in named if networks else ():
        if model.name and Path(model.name).is_dir():
            from trainer.jobs.text_model import check_text_model

            check_model_folder(Path(model.name), model.resize_embeddings)
            check_text_model(Path(model.name))


def check_tokens(experiment: Experiment, largest: int | None) -> None:
    """UserError where the records use a token that the model's folder has no row for. `largest`: the largest id; None: not counted."""
    check_folder_tokens(experiment.model, largest)
