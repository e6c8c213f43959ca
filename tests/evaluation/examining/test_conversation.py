"""The conversation block: requests in the model's own words, answered by the real engine, shown side by side."""

import json
from pathlib import Path

import pytest

from evaluation.benchmarks_config import ConversationConfig
from evaluation.engines.options import EngineOptions
from evaluation.examining.conversation import block, converse, conversing, pending, requests
from evaluation.score_files import TrainedArm


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> list[TrainedArm]:
    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    folder = tmp_path_factory.mktemp("models")
    made = []
    for seed, name in enumerate(("base", "tuned")):
        make_tiny_model(folder / name, TinyModel(vocab_size=400, max_positions=256), ["Question: who are you? Answer: nobody"], seed)
        made.append(TrainedArm(name, str(folder / name), f"weights of {name}", None, False, {"hf": name}))
    return made


def test_requests_are_fixed_and_counted() -> None:
    assert requests(ConversationConfig(prompts=0)) == []
    assert requests(ConversationConfig(prompts=2)) == requests(ConversationConfig(prompts=10))[:2]


def test_requests_are_put_as_the_arm_was_trained(arms: list[TrainedArm]) -> None:
    """In `pit` a model with a chat template is asked in that; its end of turn ends the answer, whatever the tokenizer calls the end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arms[0].path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    plain = conversing(tokenizer, "pit")
    assert tokenizer.decode(plain.prompt("who are you?")).replace("<s>", "").strip() == "Question: who are you? Answer:"
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = conversing(tokenizer, "pit")
    ids = chat.prompt("who are you?")
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert "[user]who are you?<|im_end|>[assistant]" in tokenizer.decode(ids).replace("] ", "]").replace(" <", "<").replace("> ", ">")
    assert chat.eos_id == tokenizer.convert_tokens_to_ids("<|im_end|>") != plain.eos_id
    assert "### Instruction" in tokenizer.decode(conversing(tokenizer, "alpaca").prompt("who are you?"))
    tokenizer.chat_template = "{{ raise_exception('not for you') }}"
    assert conversing(tokenizer, "pit").prompt("who are you?") == plain.prompt("who are you?")


@pytest.mark.timeout(400)
def test_two_models_answer_side_by_side(arms: list[TrainedArm], tmp_path: Path, ray_cluster: str) -> None:
    config = ConversationConfig(prompts=2, answer_tokens=4)
    assert [arm.name for arm in pending(arms, config, "auto", tmp_path)] == ["base", "tuned"]
    missing = converse(arms, config, "auto", tmp_path, EngineOptions(timeout_s=240))
    found = block(arms, config, "auto", tmp_path, missing)
    assert missing == {} and found is not None and found["missing"] == {}
    assert found["prompts"] == requests(config)
    assert all(len(arm["answers"]) == 2 and arm["tokens"] <= 4 for arm in found["arms"].values())
    assert found["arms"]["base"]["answers"] != found["arms"]["tuned"]["answers"], "other weights say something else"
    assert pending(arms, config, "auto", tmp_path) == []
    assert [arm.name for arm in pending(arms, ConversationConfig(prompts=3, answer_tokens=4), "auto", tmp_path)] == ["base", "tuned"]
    json.dumps(found, allow_nan=False)


def test_not_asked_is_missing(arms: list[TrainedArm], tmp_path: Path) -> None:
    found = block(arms, ConversationConfig(prompts=1), "auto", tmp_path, {"tuned": "no reply within 9 s"})
    assert found is not None and found["missing"] == {"base": "not asked yet", "tuned": "no reply within 9 s"}
    assert block(arms, ConversationConfig(), "auto", tmp_path, {}) is None
