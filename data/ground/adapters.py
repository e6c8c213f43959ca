"""Adapters of peft as settings: which kinds, with which keys. Imports no peft, for that imports torch.

A stage with an adapter trains its few weights beside the frozen model (LoRA, arXiv 2106.09685) and is merged when it ends, so only
kinds that can be merged into the weights, module by module, are known here. tests/models/test_adapters.py holds the keys against peft's.
"""

import copy
import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_COMMON = {"target_modules", "modules_to_save"}
_WHERE = {"exclude_modules", "layers_to_transform", "layers_pattern"}
# Kind → peft's own keys beside `target_modules` and `modules_to_save`. Left out is what changes the base (pissa, olora), the network
# (layer_replication), or cannot be merged.
KINDS: dict[str, set[str]] = {
    "lora": {
        *_WHERE, "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern",
    },
    "loha": {*_WHERE, "r", "alpha", "rank_dropout", "module_dropout", "init_weights"},
    "lokr": {*_WHERE, "r", "alpha", "rank_dropout", "module_dropout", "decompose_both", "decompose_factor", "rank_dropout_scale", "init_weights"},
    "ia3": {"exclude_modules", "feedforward_modules", "init_ia3_weights"},
    "oft": {*_WHERE, "r", "oft_block_size", "module_dropout", "bias", "coft", "eps", "block_share", "init_weights"},
    "hra": {*_WHERE, "r", "apply_GS", "bias", "init_weights"},
    "miss": {*_WHERE, "r", "miss_dropout", "mini_r", "bias", "init_weights"},
}  # fmt: skip
_SHORT = {"alpha": "lora_alpha", "dropout": "lora_dropout", "init": "init_lora_weights"}
"""Of lora: ours → peft's."""
_DROPOUTS = ("lora_dropout", "rank_dropout", "module_dropout", "miss_dropout")
_LORA_STARTS = (True, False, "gaussian", "orthogonal")


class Adapter(BaseModel):
    """`adapter: {r: 16}`; keys beyond those below go to peft's config of that kind as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    type: str = "lora"
    """lora, loha, lokr, ia3, oft, hra or miss; `full`: none of them, all weights (`adapter: full`)."""
    target_modules: str | list[str] = "all-linear"
    """Ends of module names, a regular expression, or every linear layer but the output head."""
    embeddings: bool = False
    """The input embedding and the output head are trained too, whole (peft's modules_to_save)."""
    r: Annotated[int, Field(ge=1)] | None = None
    """Rank; lora: 16."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """What is added counts alpha / r times; lora: 2 r."""

    @model_validator(mode="before")
    @classmethod
    def full_is_a_word(cls, values: Any) -> Any:
        if isinstance(values, str):
            if values != "full":
                raise ValueError(f"{values!r} is neither full (all weights are trained) nor settings such as {{r: 16}}")
            return {"type": "full"}
        return values

    @property
    def trains_all(self) -> bool:
        return self.type == "full"

    @model_validator(mode="after")
    def is_known(self) -> "Adapter":
        if self.type == "full":
            return self
        if self.type not in KINDS:
            raise ValueError(
                f"type: {self.type!r} is no adapter that can be merged into the weights module by module; known: {', '.join(KINDS)}"
            )
        known = KINDS[self.type] | _COMMON
        for key in (*(self.model_extra or {}), *(key for key in ("r", "alpha") if getattr(self, key) is not None)):
            if (_SHORT.get(key, key) if self.type == "lora" else key) not in known:
                ours = sorted({*known, *(_SHORT if self.type == "lora" else ()), "type", "embeddings"})
                near = difflib.get_close_matches(key, ours, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(ours)}"
                raise ValueError(f"{key}: unknown key of a {self.type} adapter{hint}")
        self._refuse_impossible()
        return self

    def _refuse_impossible(self) -> None:
        settings = self.settings()
        given = {key for key in ("r", "alpha") if getattr(self, key) is not None} | set(self.model_extra or {})
        for short, long in _SHORT.items():
            if self.type == "lora" and {short, long} <= given:
                raise ValueError(f"{short}: given twice, as {long} too")
        if settings.get("init_lora_weights", True) not in _LORA_STARTS:
            raise ValueError(
                f"init: {settings['init_lora_weights']!r} changes the model before training, so merging would not give what was trained; "
                "use true, gaussian or orthogonal"
            )
        for key, share in ((key, settings[key]) for key in _DROPOUTS if key in settings):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                raise ValueError(f"{'dropout' if key == 'lora_dropout' else key}: {share!r} is no share below 1")
        if self.type in ("loha", "lokr") and settings.get("module_dropout"):
            raise ValueError(
                "module_dropout: leaves whole modules out on one worker and not on another, and gradients of several workers would not fit "
                "together; use rank_dropout"
            )
        if settings.get("apply_GS") and settings.get("init_weights", True) and settings.get("r", 8) % 2 == 0:
            raise ValueError(
                "apply_GS: with an even r peft starts from every column twice, and Gram-Schmidt then divides by zero; take an odd r, or "
                "init_weights: false"
            )
        if self.embeddings and settings.get("modules_to_save"):
            raise ValueError("modules_to_save: embeddings already names the embedding and the head; give one of the two")
        if not self.target_modules:
            raise ValueError("target_modules: is empty, so nothing would be trained; all-linear, or ends of module names")

    def refused_under(self, zero_stage: int) -> str | None:
        """Why it cannot be trained to what peft trains under this ZeRO stage; None where it can."""
        settings = self.settings()
        if zero_stage == 3 and (self.embeddings or settings.get("modules_to_save")):
            return "whole modules beside it (embeddings, modules_to_save) need trainer.zero_stage 0, 1 or 2"
        if zero_stage and settings.get("coft"):
            return "coft: peft rewrites the weights in each forward pass, and DeepSpeed's own copies would not follow; use trainer.zero_stage 0"
        return None

    def drawn(self) -> dict[str, float]:
        """peft's keys of what is drawn at random in training."""
        settings = self.settings()
        return {key: float(settings[key]) for key in _DROPOUTS if settings.get(key)}

    def settings(self) -> dict[str, Any]:
        """peft's own keys and values, without `embeddings`, which needs the model. Copies: peft writes into what it is given."""
        given = copy.deepcopy({**(self.model_extra or {}), "target_modules": self.target_modules})
        if self.type == "lora":
            given["r"] = self.r or 16
            given["alpha"] = self.alpha or given.get("lora_alpha") or 2 * given["r"]
            return {_SHORT.get(key, key): value for key, value in given.items()}
        return {**given, **{key: value for key in ("r", "alpha") if (value := getattr(self, key)) is not None}}
