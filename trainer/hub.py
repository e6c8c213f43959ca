"""Models of the hub, fetched beside the run: no pickles, no code."""

from pathlib import Path

from console import UserError, say
from trainer.config import ModelConfig


def fetch_model(model: ModelConfig, target: Path, weights: bool = True) -> str:
    """Fetches a model of the hub to `target`; UserError where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert model.name is not None
    say(f"fetching {model.name}")
    try:
        return snapshot_download(
            model.name,
            revision=model.revision,
            local_dir=target,
            allow_patterns=["*.json", *(["*.safetensors"] if weights else []), "*.model", "*.txt", "*.jinja"],
            ignore_patterns=["consolidated*", "original/*"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"model.name: {model.name} is neither a folder nor reachable on the hub: {str(error).splitlines()[0]}") from None
