"""Whether stages go with the model: adapters, and what is drawn at random. On the driver, before anything starts; no weights are read."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig

from console import UserError, say
from data.config import Stage
from trainer.config import ModelConfig, TrainerConfig
from trainer.step.randomness import refuse_draws

Arms = dict[str, list[Stage]]


def check_stages(arms: Arms, model_folder: str, trainer: TrainerConfig, tell: Callable[[str], None] = say) -> None:
    """Tells what each adapter trains; UserError, naming the arm, for what does not fit."""
    adapters = {repr(stage.adapter): (arm, stage.adapter) for arm in reversed(arms) for stage in arms[arm] if stage.adapter}
    for arm, adapter in adapters.values():
        from trainer.adapter.adapter import check_adapter  # peft takes seconds

        try:
            tell(check_adapter(adapter, model_folder, trainer.zero_stage))
        except UserError as error:
            raise UserError(f"{f'arms.{arm}' if arm != 'base' else arm}: {error}") from None
    if any(arms.values()):
        refuse_draws(AutoConfig.from_pretrained(model_folder, trust_remote_code=False), trainer)


def check_planned(arms: Arms, model: ModelConfig, trainer: TrainerConfig) -> None:
    """The same for a dry run: of a tiny model, and of one whose config is on this machine."""
    if model.tiny:
        from trainer.network.model import tiny_config

        with TemporaryDirectory() as folder:
            tiny_config(model.tiny, model.tiny.vocab_size).save_pretrained(folder)
            check_stages(arms, folder, trainer, lambda line: None)  # its vocabulary is not known yet, and so no count of weights
    elif model.name and (config := _config_here(model)):
        check_stages(arms, str(config.parent), trainer)


def _config_here(model: ModelConfig) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    assert model.name is not None
    if (own := Path(model.name) / "config.json").exists():
        return own
    cached = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
    return Path(cached) if isinstance(cached, str) else None
