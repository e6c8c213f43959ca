"""What a search looks at in the midst of a stage: left by the ranks, the same as made from their checkpoint by one process."""

import shutil
from pathlib import Path

import pytest

from experiment import load_experiment
from tests.faults.conftest import write_experiment
from tests.helpers.forked import prepared_for
from tests.helpers.groups import Groups
from tests.numerics.paused_steps import PAUSE
from trainer import drive
from trainer.export.export import export_checkpoint
from trainer.export.paused import paused_weights
from trainer.store.checkpoint import checkpoints
from trainer.store.stages import StageStore


@pytest.mark.parametrize("overrides", [[], pytest.param(["trainer.adapter={r: 4}", "trainer.zero_stage=3"], marks=pytest.mark.slow)])
def test_ranks_leave_what_their_checkpoint_holds(groups: Groups, tmp_path: Path, overrides: list[str]) -> None:
    path, out = write_experiment(tmp_path), tmp_path / "out"
    out.mkdir()
    experiment = load_experiment(path, overrides)
    (experiment.folder / "logs").mkdir(parents=True)
    prepared = prepared_for(experiment)
    groups.call("tests.numerics.paused_steps", out, 2, str(path), *overrides)
    job, store = prepared.jobs[0], StageStore(experiment.folder)
    (saved,) = checkpoints(store.folder(job.key))
    assert saved.step == PAUSE and not (store.folder(job.key) / "adapter-fragments").exists()
    settings = drive.worker_settings(experiment.folder, prepared, experiment.trainer, experiment.seed, False)
    alone = export_checkpoint(saved.folder, settings, tmp_path / "alone")
    assert paused_weights(out / "hf", job.key, PAUSE) == alone
    files = {file.name: file.read_bytes() for file in (out / "hf").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "alone").iterdir()}
    assert paused_weights(out / "hf", job.key, PAUSE + 1) is None, "the twin: of another step"
    shutil.copyfile(out / "hf" / "config.json", out / "hf" / "tokenizer.json")
    assert paused_weights(out / "hf", job.key, PAUSE) is None, "the twin: another file"
