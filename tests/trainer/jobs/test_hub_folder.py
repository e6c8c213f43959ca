"""Where models of the hub lie beside a run."""

from pathlib import Path

from trainer.config import ModelConfig
from trainer.jobs.hub import hub_folder


def test_each_revision_has_a_folder_of_its_own() -> None:
    """Two of one model in one experiment would overwrite each other's weights, under keys of the first."""
    models = [ModelConfig(name="someone/model", revision=revision) for revision in (None, "step1000", "refs/pr/1")]
    folders = [hub_folder(Path("run"), model) for model in models]
    assert folders[0] == Path("run/hub/someone--model") and len(set(folders)) == 3
    assert all(folder.parent == Path("run/hub") for folder in folders)
