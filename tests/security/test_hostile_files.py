"""Model folders, weights and tables that try to run code: refused in one line with exit code 2, and nothing was run.

Every hostile file would leave a marker file if a loader did what it asks; each kind has a twin that shows it.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from console import UserError
from data.tokens import load_tokenizer
from tests.helpers.groups import Groups
from tests.helpers.refusals import refusal
from trainer.config import TinyModel
from trainer.network.model_check import check_model_folder

EXPERIMENT = """\
name: hostile
runs: {runs}
data: {{bios: {{replay_people: 0, train_people: 3, test_people: 2}}}}
model: {{name: {model}}}
dials: {{batch_items: 4}}
arms: {{mix: {{preset: mix}}}}
trainer: {{row_tokens: 256}}
"""


class Payload:
    """Unpickling it makes the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.network.model import make_tiny_model

    folder = tmp_path_factory.mktemp("good")
    make_tiny_model(folder, TinyModel(vocab_size=300, hidden_size=32, layers=1), ["a few words for a tokenizer"] * 3, seed=0)
    return folder


@pytest.fixture
def model(good_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_model, tmp_path / "model"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remote_model(model: Path, marker: Path) -> str:
    """An architecture of its own, with code beside it."""
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import PretrainedConfig\nclass C(PretrainedConfig):\n    model_type = 'evil'\n"
    (model / "modeling_evil.py").write_text(code)
    edit(model / "config.json", model_type="evil", auto_map={"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.C"})
    return "config.json: model_type 'evil' is no architecture of transformers; the folder brings code of its own, which is never run"


def remote_tokenizer(model: Path, marker: Path) -> str:
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\nclass T(PreTrainedTokenizerFast):\n    pass\n"
    (model / "tokenization_evil.py").write_text(code)
    edit(model / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": [None, "tokenization_evil.T"]})
    return "its tokenizer cannot be loaded: it needs code of its own, which is never run"


def pickled_weights(model: Path, marker: Path) -> str:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    return "no model.safetensors, only pytorch_model.bin; convert the model to safetensors (pickled weights are never read)"


def pickle_called_safetensors(model: Path, marker: Path) -> str:
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    return "model.safetensors: not a readable safetensors file"


def index_names_a_pickle(model: Path, marker: Path) -> str:
    (model / "weights.pkl").write_bytes(pickle.dumps(Payload(marker)))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "weights.pkl"}}))
    return "model.safetensors.index.json: 'weights.pkl' is no safetensors file of this folder"


def index_leads_out(model: Path, marker: Path) -> str:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}))
    return "'../x.safetensors' is no safetensors file of this folder"


def truncated_weights(model: Path, marker: Path) -> str:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "model.safetensors: not a readable safetensors file"


def deep_config(model: Path, marker: Path) -> str:
    (model / "config.json").write_text("[" * 100_000)
    return "config.json: not JSON"


def no_config(model: Path, marker: Path) -> str:
    (model / "config.json").unlink()
    return "config.json: cannot be read"


HOSTILE = [
    remote_model,
    remote_tokenizer,
    pickled_weights,
    pickle_called_safetensors,
    index_names_a_pickle,
    index_leads_out,
    truncated_weights,
    deep_config,
    no_config,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_the_driver_refuses(make: Callable[[Path, Path], str], model: Path, marker: Path) -> None:
    reason = make(model, marker)
    assert reason in refusal(lambda: (check_model_folder(model), load_tokenizer(str(model))))
    assert not marker.exists()


def test_the_good_one_passes(model: Path) -> None:
    check_model_folder(model)
    load_tokenizer(str(model))


@pytest.mark.parametrize("make", [remote_model, remote_tokenizer, pickled_weights], ids=lambda make: make.__name__)
def test_the_command_refuses_even_where_somebody_answers_yes(
    make: Callable[[Path, Path], str], model: Path, marker: Path, tmp_path: Path, groups: Groups
) -> None:
    """transformers asks on stdin whether remote code may run, unless it is told no."""
    reason = make(model, marker)
    (tmp_path / "x.yaml").write_text(EXPERIMENT.format(runs=tmp_path / "runs", model=model))
    done = groups.command("trainer", str(tmp_path / "x.yaml"), "--no-exam", typed="y\n" * 9)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and reason in last and "Traceback" not in done.stderr
    assert not marker.exists()


def test_twin_remote_code_would_run(model: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    remote_tokenizer(model, marker)
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    AutoTokenizer.from_pretrained(model)  # as the library's default has it
    assert marker.exists()


def test_twin_the_pickle_would_run(model: Path, marker: Path) -> None:
    pickled_weights(model, marker)
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert marker.exists()


def test_code_beside_a_known_architecture_is_not_run(model: Path, marker: Path) -> None:
    """auto_map in the config of a model that transformers knows: its own class is used."""
    import torch

    from trainer.network.model import build_model

    (model / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    edit(model / "config.json", auto_map={"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"})
    check_model_folder(model)
    assert type(build_model(str(model), "eager", torch.float32)).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_a_chat_template_is_never_rendered(model: Path, marker: Path) -> None:
    """Prompts are ours (data/wording/templates.py); a template that would run code has nobody who renders it."""
    from data.records import Question
    from data.tokens import Encoder

    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    (model / "chat_template.jinja").write_text(evil)
    edit(model / "tokenizer_config.json", chat_template=evil)
    tokenizer = load_tokenizer(str(model))
    assert Encoder(tokenizer).encode([Question("q", "What?", ("That",))])
    assert not marker.exists()
    with pytest.raises(Exception, match=r"unsafe|undefined|not safe"):  # and whoever did would meet transformers' sandbox
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not marker.exists()


def test_a_pickle_among_the_fragments_is_not_unpickled(tmp_path: Path, marker: Path) -> None:
    from safetensors import SafetensorError

    from trainer.store.weights import FragmentWeights

    (tmp_path / "rank-00000.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises((SafetensorError, UserError)):
        FragmentWeights(tmp_path, {"w": [1]}, 1)
    assert not marker.exists()


def test_pickled_arrays_of_a_token_store_are_refused(tmp_path: Path, marker: Path) -> None:
    import numpy as np

    from data.rows.token_store import open_store

    (tmp_path / "manifest.json").write_text(json.dumps({"key": "k", "sha256": "s"}))
    (tmp_path / "tokens.bin").write_bytes(b"\0" * 4)
    np.save(tmp_path / "offsets.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        open_store(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["ray.data.arrow_pickled_object", "ray.data.arrow_tensor", "arrow.py_extension_type"])
def test_parquet_with_a_pickled_type(tmp_path: Path, marker: Path, name: str, run_command: Any) -> None:
    """Types whose metadata is a pickle, as Ray's and old pyarrow's readers loaded them."""
    field = pa.field(
        "text", pa.string(), metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Payload(marker))}
    )
    pq.write_table(pa.table([pa.array(["t"])], pa.schema([field])), tmp_path / "evil.parquet")
    done = run_command("data", "check", str(tmp_path / "evil.parquet"), "--holds", "documents")
    assert done.returncode == 2 and "evil.parquet: has an Arrow extension type" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not marker.exists()
