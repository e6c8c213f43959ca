"""Models of the hub, fetched beside the run: no pickles, no code."""

from pathlib import Path
from urllib.parse import quote

from console import UserError, say
from trainer.config import ModelConfig

_WEIGHTS = ("*.safetensors",)
_REST = ("*.json", "*.model", "*.txt", "*.jinja")
_NOT = ("consolidated*", "original/*")


def hub_folder(run_folder: Path, model: ModelConfig) -> Path:
    """Where a model of the hub lies beside the run: each revision apart."""
    assert model.name is not None
    revision = f"@{quote(model.revision, safe='')}" if model.revision else ""
    return run_folder / "hub" / f"{model.name.replace('/', '--')}{revision}"


def fetch_model(model: ModelConfig, target: Path, weights: bool = True) -> str:
    """Fetches a model of the hub to `target`; where the hub does not answer, what its cache on this machine holds. UserError where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert model.name is not None
    patterns = [*_REST, *(_WEIGHTS if weights else ())]
    say(f"fetching {model.name}")
    try:
        return snapshot_download(
            model.name, revision=model.revision, local_dir=target, allow_patterns=patterns, ignore_patterns=list(_NOT)
        )  # fmt: skip
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        if cached := _cached(model, weights):
            say(f"{model.name}: the hub does not answer; taken from its cache, {cached} (on a cluster every node must see that folder)")
            return cached
        raise UserError(f"model.name: {model.name} is neither a folder nor reachable on the hub: {str(error).splitlines()[0]}") from None


def _cached(model: ModelConfig, weights: bool) -> str | None:
    """The snapshot in the hub's cache, which transformers and vLLM read too; None where its config or its weights are not there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(model.name), revision=model.revision, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError among them
        return None
    whole = (folder / "config.json").is_file() and (not weights or any(folder.glob("*.safetensors")))
    return str(folder) if whole else None
