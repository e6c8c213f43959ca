"""The real model through the trainer's own chain: three steps with all weights and three with LoRA on a few real films.

python -m tests.models.real MODEL DATA OUT      writes OUT/result.json; a process of its own, for DeepSpeed remembers process groups
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from experiment import Experiment
from tests.models.chain import train
from trainer import drive
from trainer.store.stages import StageStore

NUM_FILMS = 4
STAGE = {"mix": {"test_documents": 1}, "epochs": 3, "batch_items": NUM_FILMS, "schedule": "constant"}


def films(data: Path) -> list[dict[str, Any]]:
    """The first short ones of the exam's films."""
    rows = map(json.loads, (data / "test_doc.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if 100 < len(row["text"]) < 260][:NUM_FILMS]


def experiment(model: Path, out: Path, documents: list[dict[str, Any]]) -> Experiment:
    (out / "doc.jsonl").write_text("".join(json.dumps({"id": str(d["wiki_id"]), "text": d["text"]}) + "\n" for d in documents))
    asked = {"doc_id": str(documents[0]["wiki_id"]), "question": "What is it?", "answer": "A film"}
    (out / "qa.jsonl").write_text(json.dumps(asked) + "\n")
    sources = [
        {"path": f"{holds[:3] if holds == 'documents' else 'qa'}.jsonl", "split": "test", "holds": holds}
        for holds in ("documents", "questions")
    ]
    return Experiment.model_validate(
        {
            "name": "real", "runs": str(out / "runs"), "model": {"name": str(model), "bos": "auto"}, "data": {"root": str(out), "sources": sources},
            "arms": {
                "full": {"stages": [{**STAGE, "rate": 2e-4}]},
                "lora": {"stages": [{**STAGE, "rate": 2e-3}], "adapter": {"r": 8}},
            },
            "trainer": {"row_tokens": 512, "zero_stage": 2}, "exam": {"compare_to": "full"},
        }
    )  # fmt: skip


@torch.no_grad()
def loss(folder: Path, documents: list[dict[str, Any]]) -> float:
    """Mean over documents of their mean negative log-likelihood, nats a token; by transformers, from the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and model.lm_head.weight is model.model.embed_tokens.weight, "tied, as it was"
    batches = [torch.tensor([tokenizer(d["text"])["input_ids"]]) for d in documents]
    return sum(float(model(input_ids=ids, labels=ids, use_cache=False).loss) for ids in batches) / len(batches)


def main(model: Path, data: Path, out: Path) -> None:
    drive.begin_alone()
    documents = films(data)
    one = experiment(model, out, documents)
    prepared = train(one)
    stages = {arm: StageStore(one.folder).folder(keys[-1]) / "hf" for arm, keys in prepared.keys.items() if keys}
    losses = {arm: loss(hf, documents) for arm, hf in {"base": model, **stages}.items()}
    (out / "result.json").write_text(json.dumps({"hf": {arm: str(hf) for arm, hf in stages.items()}, "losses": losses}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
