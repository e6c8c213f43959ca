"""What stands around a model's texts: which tokens begin them, which one ends an answer, and in which wording a model was trained.

hf/studyhall.json, beside a trained model's weights    {"template": "pit" | "alpaca" | "chat", "begins": [token], "ends": token}
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import Stage
from data.wording.begins import FILE, named_start, start_ids
from data.wording.templates import exam_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write_framing(folder: Path, template: str, tokenizer: "PreTrainedTokenizerFast", end_id: int | None = None) -> None:
    (folder / FILE).write_text(json.dumps(_framing(template, tokenizer, end_id), ensure_ascii=False), encoding="utf-8")


def _framing(template: str, tokenizer: "PreTrainedTokenizerFast", end_id: int | None) -> dict[str, Any]:
    end = int(tokenizer.eos_token_id) if end_id is None else end_id  # type: ignore[arg-type]
    return {
        "template": template,
        "begins": tokenizer.convert_ids_to_tokens(start_ids(tokenizer)),
        "ends": tokenizer.convert_ids_to_tokens(end),
    }


def begins_otherwise(folder: Path) -> dict[str, Any]:
    """{"begins": ids} where a model's texts do not begin with its bos token alone: for keys, which thus stay what they were everywhere else."""
    from data.tokens import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    start = start_ids(tokenizer)
    return {} if start == named_start(tokenizer) else {"begins": start}


def framing_of(folder: Path) -> dict[str, Any]:
    """{"template", "begins", "ends"} of a trained model's folder, read from it or, for one of an older version, from its tokenizer."""
    if (folder / FILE).is_file():
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    from data.tokens import Encoder, load_tokenizer
    from data.wording.templates import Wording

    tokenizer, template = load_tokenizer(str(folder)), template_of(folder)
    return _framing(template, tokenizer, Encoder(tokenizer, Wording(template)).eos_id)  # type: ignore[arg-type]


def template_of(folder: Path) -> str:
    """The wording in which the model of this folder was taught questions; `pit` for any other model."""
    if (folder / FILE).is_file():
        return str(json.loads((folder / FILE).read_text(encoding="utf-8")).get("template", "pit"))
    stages = folder.parent.parent
    return template_of_stage(stages, folder.parent.name) if folder.name == "hf" and stages.name == "stages" else "pit"


def template_of_stage(stages: Path, key: str | None, last: Stage | None = None, start: Path | None = None) -> str:
    """The wording of the last stage that trained questions: `last`, the committed stage `key`, or one before it; else that of the model `start`."""
    found = [last] if last else []
    while key and (path := stages / key / "manifest.json").is_file():
        job = json.loads(path.read_text(encoding="utf-8")).get("job", {})
        found += [Stage.model_validate(job["stage"])] if "stage" in job else []
        key = job.get("parent")
    return exam_template(found[::-1], template_of(start) if start else "pit")
