"""model.resize_embeddings: a model whose embedding has a row for every token of its tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from console import say
from data.ground.contents import MEMORY, names_and_contents
from data.tokens import load_tokenizer
from trainer.network.model_check import check_model_folder
from trainer.network.model_tensors import embedding_rows
from trainer.store.stages import write_json


def resized(source: Path, target: Path) -> Path:
    """`source` itself where no row is missing, else a copy in `target`; new rows are the mean of the old ones (Hewitt 2021).

    Holds the whole model in memory, in the files' precision. A copy of the same files is made once.
    """
    tensors = check_model_folder(source, grown=True)
    size = len(load_tokenizer(str(source)))
    if size <= (embedding_rows(tensors) or size):
        return source
    files = names_and_contents([f for f in sorted(source.iterdir()) if f.is_file()], target.parent / MEMORY)
    stamp = {"contents": files, "rows": size}
    made = target / "made.json"
    told = json.loads(made.read_text()) if made.exists() else None
    if told == _earlier(source, size):
        write_json(made, stamp)
    elif told != stamp:
        say(f"model.resize_embeddings: {source} gets {size:,} rows in {target}")
        shutil.rmtree(target, ignore_errors=True)
        _write(source, target, size)
        write_json(made, stamp)
    return target


def _earlier(source: Path, size: int) -> Any:
    """What stood in made.json until 2026-11-28; the stages' old keys know the copy by its times, so it is not made again."""
    files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(source.iterdir()) if f.is_file()]
    return {"source": str(source.resolve()), "files": files, "rows": size}


def _write(source: Path, target: Path, size: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.network.buffers import read_buffers, set_buffer
    from trainer.store.weights import FolderWeights

    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False, use_safetensors=True)
    for name, value in read_buffers(model, FolderWeights(source)).items():  # the library rounds some to the weights' dtype
        set_buffer(model, name, value, value.dtype)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size, mean_resizing=False)
    heads = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    with torch.no_grad():
        for values in {id(p): p for part in heads for p in part.parameters() if p.shape[0] == size}.values():
            values[old:] = values[:old].float().mean(0).to(values.dtype)
    model.save_pretrained(target)
    for path in source.iterdir():
        is_for_readers = path.suffix in (".json", ".model", ".txt", ".jinja") and not path.name.endswith(".index.json")
        if path.is_file() and is_for_readers and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
