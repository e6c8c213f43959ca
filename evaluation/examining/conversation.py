"""A few fixed requests, answered by every model: does it still converse after training? Nothing is scored; people read them.

runs/<name>/conversation/<arm>-<key>.json    {"answers": [text], "ended": [bool], "tokens": [int]}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from console import UserError, say
from data.ground.durable import write_text
from data.tokens import Encoder, load_tokenizer
from data.wording.templates import Wording, question_prompt
from evaluation.benchmarks_config import ConversationConfig
from evaluation.score_files import TrainedArm, under_new_name

_PROMPTS = Path(__file__).with_name("conversation_prompts.txt")


def requests(config: ConversationConfig) -> list[str]:
    return [line for line in _PROMPTS.read_text(encoding="utf-8").splitlines() if line.strip()][: config.prompts]


def pending(arms: Sequence[TrainedArm], config: ConversationConfig, dtype: str, folder: Path) -> list[TrainedArm]:
    """The arms that have not been talked to."""
    return [arm for arm in arms if config.prompts and not arm.gone and not _path(folder, arm, config, dtype).is_file()]


def converse(arms: Sequence[TrainedArm], config: ConversationConfig, dtype: str, folder: Path, options: Any) -> dict[str, str]:
    """Writes each arm's answers; returns why others have none. Needs a running Ray."""
    from evaluation.engine import Engine, EngineFailure
    from evaluation.engines.network import read_network

    missing = {}
    with Engine(options) as engine:
        for arm in arms:
            say(f"{arm.name}: {config.prompts} requests")
            encoder = conversing(load_tokenizer(arm.path, arm.revision), arm.template)
            prompts = [encoder.prompt(request) for request in requests(config)]
            room = read_network(arm.path, arm.revision).positions
            budget = config.answer_tokens if room is None else min(config.answer_tokens, room - max(map(len, prompts)))
            if budget < 1:
                missing[arm.name] = f"the model's {room} positions leave no room for an answer"
                continue
            try:
                engine.open(arm.path, arm.weights, max(map(len, prompts)) + budget, arm.revision)
                answers = engine.answer(prompts, budget, encoder.eos_id)
            except EngineFailure as failure:
                missing[arm.name] = str(failure)
                continue
            said = {
                "answers": [a["text"].strip() for a in answers],
                "ended": [a["finish_reason"] == "stop" for a in answers],
                "tokens": [len(a["token_ids"]) for a in answers],
            }
            write_text(_path(folder, arm, config, dtype), json.dumps(said, ensure_ascii=False))
    return missing


def conversing(tokenizer: Any, template: str) -> Encoder:
    """How requests are put: in the wording that the arm was trained in; where that is `pit`, in the model's own chat template if it has a usable one.

    A model that conversed before is asked as it was then: a question in `pit` would say nothing about that.
    """
    if template == "pit" and tokenizer.chat_template:
        try:
            return Encoder(tokenizer, Wording("chat"))
        except UserError as error:
            say(f"{error}; requests are put in the wording of training")
    return Encoder(tokenizer, Wording(template))  # type: ignore[arg-type]


def block(
    arms: Sequence[TrainedArm], config: ConversationConfig, dtype: str, folder: Path, missing: Mapping[str, str]
) -> dict[str, Any] | None:
    """report["conversation"]: {"prompts", "arms": {arm: {"ended": share, "tokens": mean, "answers"}}, "missing": {arm: reason}}."""
    if not config.prompts:
        return None
    found = {}
    for arm in arms:
        path = _path(folder, arm, config, dtype)
        if path.is_file():
            said = json.loads(path.read_text(encoding="utf-8"))
            n = len(said["answers"])
            found[arm.name] = {"ended": sum(said["ended"]) / n, "tokens": sum(said["tokens"]) / n, "answers": said["answers"]}
    why = {arm.name: missing.get(arm.name, "not asked yet") for arm in arms if arm.name not in found}
    return {"prompts": requests(config), "arms": found, "missing": why}


def _path(folder: Path, arm: TrainedArm, config: ConversationConfig, dtype: str) -> Path:
    own = [] if arm.template == "pit" else [arm.template]
    facts = [requests(config), config.answer_tokens, dtype, question_prompt(""), *own, *arm.begins]
    keys = [hashlib.sha256(json.dumps([weights, *facts]).encode()).hexdigest() for weights in (arm.weights, arm.earlier) if weights]
    return under_new_name(*(folder / "conversation" / f"{arm.name}-{key[:16]}.json" for key in keys))
