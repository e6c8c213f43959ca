"""What a stage leaves says how it was trained: the token that ends, the wording, what begins; and keys change only where those do."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from data.config import Stage
from data.rows.framing import begins_otherwise, template_of, template_of_stage
from data.wording.begins import FILE
from data.wording.tiny_tokenizer import make_tokenizer
from evaluation.score_files import TrainedArm, score_stem
from trainer.config import ModelConfig
from trainer.export.export import _name_end
from trainer.jobs.prepare import initial_identity


@pytest.mark.parametrize(
    ("in_config", "in_generation", "wanted"),
    [
        (2, {"eos_token_id": 2}, [5, 2]),  # a chat's end of turn that the base's files do not know
        (2, {"eos_token_id": [2, 5]}, [2, 5]),
        (5, {"eos_token_id": 2}, [5, 2]),  # a server reads the generation config first
        (2, {}, [5, 2]),
        (5, None, None),  # known, and no file: none is made, for the exam's engine compares files
        (2, None, [5, 2]),
        (None, None, 5),
    ],
)
def test_the_end_of_training_is_named_beside_the_models_own(in_config: Any, in_generation: Any, wanted: Any, tmp_path: Path) -> None:
    config, file = LlamaConfig(eos_token_id=in_config), tmp_path / "generation_config.json"
    if in_generation is not None:
        file.write_text(json.dumps({"do_sample": False, **in_generation}))
    before = file.read_bytes() if file.exists() else None
    _name_end(config, file, 5)
    if wanted is None or wanted == (in_generation or {}).get("eos_token_id"):
        assert (file.read_bytes() if file.exists() else None) == before and config.eos_token_id == in_config
    else:
        assert json.loads(file.read_text())["eos_token_id"] == config.eos_token_id == wanted


def test_the_wording_is_that_of_the_last_questions_even_of_another_run(tmp_path: Path) -> None:
    stages, start = tmp_path / "stages", tmp_path / "other"
    start.mkdir()
    (start / FILE).write_text(json.dumps({"template": "chat"}))
    common = {"epochs": 1, "batch_items": 2, "rate": 1e-3}
    questions = Stage.model_validate({"mix": {"train_questions": 1}, "template": "alpaca", **common})
    documents = Stage.model_validate({"mix": {"train_documents": 1}, **common})
    for key, stage, parent in (("a", documents, None), ("b", questions, "a"), ("c", documents, "b")):
        (stages / key).mkdir(parents=True)
        (stages / key / "manifest.json").write_text(json.dumps({"job": {"stage": stage.model_dump(mode="json"), "parent": parent}}))
    assert template_of_stage(stages, "c") == template_of_stage(stages, "a", questions) == "alpaca"
    assert template_of_stage(stages, "a", documents, start) == "chat" and template_of_stage(stages, "a", documents) == "pit"
    assert template_of(stages / "c" / "hf") == "alpaca"


def test_keys_change_only_where_texts_begin_otherwise(tmp_path: Path) -> None:
    adds = make_tokenizer(["Who wrote Dune?"], 400)
    adds.save_pretrained(tmp_path / "adds")
    adds.backend_tokenizer.post_processor = adds.backend_tokenizer.decoder = None
    adds.save_pretrained(tmp_path / "names")
    assert begins_otherwise(tmp_path / "adds") == begins_otherwise(tmp_path / "names") == {}
    (tmp_path / "names" / FILE).write_text(json.dumps({"template": "pit"}))  # as model.bos=never leaves it
    assert begins_otherwise(tmp_path / "names") == {"begins": []}
    stems = {score_stem(tmp_path, TrainedArm("a", "p", "w", None, False, entry), "exam") for entry in ({}, {"hf": "x"}, {"begins": []})}
    assert len(stems) == 2
    model = ModelConfig(name=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert len({initial_identity(m, tmp_path, 0, "t") for m in (model, model.model_copy(update={"bos": "always"}))}) == 1
