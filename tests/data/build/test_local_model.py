"""A random model under a grammar: whatever it says is JSON of the asked shape. Real vLLM in a Ray worker of Ray Data."""

import json
from pathlib import Path

import pytest

from data.__main__ import main
from data.build.asking.prompts import Misread, read_answer
from tests.data.build.test_command import make_folder, manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that has learnt nothing."""
    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    folder = tmp_path_factory.mktemp("model")
    texts = [path.read_text() for path in Path(__file__).parent.glob("*.py")]
    make_tiny_model(folder, TinyModel(vocab_size=2000, hidden_size=64, layers=2, max_positions=4096), texts, seed=0)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_guided_decoding_makes_json_of_noise(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    arguments = ["build", str(make_folder(tmp_path / "folder", files=6)), "--out", str(out), "--model", str(model), "--gpus", "0"]
    arguments += ["--questions", "2", "--tries", "1", "--max-model-len", "4096"]
    with pytest.raises(ValueError, match="no question is left"):  # noise survives no filter, and is counted
        main(arguments)
    account = manifest(out)["account"]
    assert account["questions"]["came"] >= account["answers"]["used"] > 0
    assert account["questions"]["used"] == 0 and sum(account["questions"]["left_out"].values()) == account["questions"]["came"]
    replies = [json.loads(path.read_text()) for path in (out / "answers").rglob("*.json")]
    assert len(replies) == account["documents"]["used"]
    finished = [reply for reply in replies if reply["finish"] == "stop"]
    assert finished
    for reply in finished:
        value = json.loads(reply["text"], strict=False)  # xgrammar lets control characters into texts
        assert set(value) == {"questions"} and 1 <= len(value["questions"]) <= 2
        assert not [
            one for one in read_answer(reply["text"], "open") if isinstance(one, Misread) and one.reason != "an empty question or answer"
        ]
    assert account["answers"]["left_out"].get("the reply was cut off", 0) == len(replies) - len(finished)
