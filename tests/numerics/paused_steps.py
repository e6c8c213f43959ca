"""A stage paused by two ranks, which leave the model as it is; main runs in tests/helpers/forked.py's groups."""

from dataclasses import replace
from pathlib import Path

from experiment import load_experiment
from trainer import drive
from trainer.worker import train_jobs

PAUSE = 7


def main(out: Path, world_size: int, rank: int, path: str, *overrides: str) -> None:
    from tests.helpers.forked import prepared_for

    experiment = load_experiment(path, list(overrides))
    prepared = prepared_for(experiment)
    job = prepared.jobs[0]
    settings = drive.worker_settings(experiment.folder, prepared, experiment.trainer, experiment.seed, False)
    paused = replace(settings, pause_after={job.key: PAUSE}, paused_to=str(out / "hf"))
    train_jobs(paused, [job], drive.rows_without_ray(prepared, experiment.seed), {})
