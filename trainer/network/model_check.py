"""A model folder is somebody else's files: what it must hold, found out on the driver before any worker starts.

Nothing of it is ever run or unpickled: a config that needs code of its own and weights that are no safetensors are refused.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from console import UserError
from data.ground.model_config import check_name
from trainer.config import ModelConfig
from trainer.network.model_tensors import Header, check_headers, check_network, check_tokens, embedding_rows, headers

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx")
_POINTER = b"version https://git-lfs"


def check_model_folder(folder: Path, grown: bool = False) -> dict[str, Header]:
    """UserError, naming the file, where config.json or the weights cannot be used safely, or do not belong together; else the tensors.

    `grown`: the embedding will be made as large as the tokenizer (model.resize_embeddings). Imports transformers, seconds where it is new.
    """
    tensors = check_files(folder, grown)
    config = _json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _is_known(model_type):
        needs_code = "; the folder brings code of its own, which is never run" if config.get("auto_map") else ""
        raise UserError(
            f"{folder / 'config.json'}: model_type {model_type!a} is no architecture of transformers{needs_code}; use one that transformers knows"
        )
    if "text_config" not in config:  # else its text model is checked, once that is a folder of its own (trainer/jobs/text_model.py)
        check_network(folder, tensors)
    return tensors


def check_named(place: str, model: ModelConfig) -> None:
    """UserError "place: reason" where model.name is meant as a folder and is none, or is one whose files show faults within a second."""
    if model.name is None:
        return
    check_name(place, model.name)
    if Path(model.name).is_dir():
        check_files(Path(model.name), model.resize_embeddings)


def check_folder_tokens(model: ModelConfig, largest: int | None) -> None:
    """UserError where the largest token that the records use has no row in the folder's embedding, which is not to be made larger."""
    if largest is not None and model.name and not model.resize_embeddings and Path(model.name).is_dir():
        check_tokens(largest, embedding_rows(check_files(Path(model.name))), model.name)


def check_files(folder: Path, grown: bool = False) -> dict[str, Header]:
    """The tensors' headers; UserError for faults that config.json and the files' headers show, without torch or transformers."""
    _refuse_pointers(folder)
    config = _json(folder / "config.json")
    files = _weight_files(folder)
    for path in files:
        try:
            with safe_open(path, framework="np"):
                pass  # the header alone is read and checked against the file's size
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); fetch it again, or convert the model to safetensors "
                "(pickled weights are never read)"
            ) from None
    _refuse_two_layouts(folder, files)
    if not isinstance(config.get("model_type"), str) or config.get("auto_map"):
        return headers(files)  # an architecture that transformers may not know is refused first
    tensors = headers(files)
    check_headers(folder, config, tensors, grown)
    return tensors


def _refuse_pointers(folder: Path) -> None:
    """What `git clone` leaves without git-lfs: a few lines of text under the name of each large file."""
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.model"))):
        if path.is_file() and path.stat().st_size < 1024:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise UserError(
                        f"{path}: is a pointer of Git LFS and not the file; run `git lfs pull` in the folder, or fetch the model again"
                    )


def _refuse_two_layouts(folder: Path, files: list[Path]) -> None:
    """Libraries disagree about which of two is read: transformers takes the single file, vLLM the index, or everything that lies there."""
    others = sorted(path.name for path in folder.glob("model*.safetensors") if path not in files)
    if others:
        raise UserError(
            f"{folder / others[0]}: lies beside {files[0].name}{' and its index' if len(files) > 1 else ''} and is another copy of the weights, perhaps "
            "an older one; remove what is not meant"
        )


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _weight_files(folder: Path) -> list[Path]:
    """The files that trainer.store.weights.FolderWeights will read."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if (single := folder / "model.safetensors").exists():
            return [single]
        raise UserError(f"{folder}: no model.safetensors{_instead(folder)}")
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map is missing; fetch the model again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name!a} is no safetensors file of this folder; fetch the model again")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, and {index.name} names it; fetch the model again")
    return [folder / name for name in names]


def _instead(folder: Path) -> str:
    """What a folder without weights that can be read holds, and what to do with it."""
    if shards := sorted(path.name for path in folder.glob("*.safetensors")):
        return f", only {shards[0]} and no model.safetensors.index.json; fetch the model again"
    if packed := sorted(path.name for path in folder.glob("*.gguf")):
        return f", only {packed[0]}; make a folder of it with python -m trainer model convert {folder / packed[0]} --out DIR"
    found = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    return f"{f', only {found[0]}' if found else ''}; convert the model to safetensors (pickled weights are never read)"


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; a model folder holds config.json, tokenizer and safetensors") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; fetch the model again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no object {{…}}; fetch the model again")
    return values
