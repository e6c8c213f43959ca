"""Families through the trainer's own chain in one process: prepare, isolation, DeepSpeed steps, export, and the exam by transformers.

python -m tests.models.chain OUT FAMILY…      writes OUT/<family>.json
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evaluation.engines.options import EngineOptions
from evaluation.generate import Generator
from experiment import Experiment
from tests.helpers.networks import same_bits
from tests.models.families import save_model
from trainer import drive, run
from trainer.network.buffers import buffers, names_in_files
from trainer.network.families import make_network
from trainer.network.loading import load_into
from trainer.store.stages import StageStore
from trainer.store.weights import FolderWeights, FragmentWeights

SHARDED = ("deepseek-v3", "gemma4")
"""Trained in bf16 under ZeRO-3 too: one family whose files are laid out otherwise than the network, one whose are not."""
TEXTS = [f"Person number {n} lives in town {n * 37 % 91} and works for company {n % 7}." for n in range(60)]


def experiment(out: Path, family: str, model: Path, **trainer: Any) -> Experiment:
    stage = {"epochs": 1, "batch_items": 3, "rate": 1e-3}
    return Experiment.model_validate(
        {
            "name": family, "runs": str(out / "runs"), "model": {"name": str(model)},
            "data": {"bios": {"replay_people": 0, "train_people": 4, "test_people": 2}},
            "arms": {"both": {"stages": [{"mix": {"train_documents": 1}, **stage}, {"mix": {"test_documents": 1, "train_questions": 1}, **stage}]}},
            "trainer": {"row_tokens": 512, "zero_stage": 2, **trainer}, "exam": {"compare_to": "both"},
        }
    )  # fmt: skip


def train(one: Experiment, stop_after: int | None = None) -> run.Prepared:
    """`stop_after`: steps of the first stage after which training stops, saved, and a second try goes on."""
    from trainer.worker import train_jobs

    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / "logs").mkdir(exist_ok=True)
    arms = {"base": one.stages("base"), **{arm: one.stages(arm) for arm in one.arms}}
    prepared = run.prepare(one.folder, one.data, one.model, one.trainer, arms, one.seed, False)
    settings = drive.worker_settings(one.folder, prepared, one.trainer, one.seed, False)
    rows, resume = drive.rows_without_ray(prepared, one.seed), {}
    if stop_after:
        resume = {prepared.jobs[0].key: stop_after}
        train_jobs(replace(settings, pause_after=resume), prepared.jobs, rows, {})
        assert StageStore(one.folder).manifest(prepared.jobs[0].key) is None
    train_jobs(settings, prepared.jobs, rows, resume)
    return prepared


def kept_in(folder: Path, model: Path) -> dict[str, bool]:
    """Of each buffer of the model whether the files of `folder` hold the same bits, by the files' names."""
    network = make_network(model)
    ours, theirs = FolderWeights(folder), FolderWeights(model)
    places = names_in_files(network, buffers(network), theirs.names())
    return {name: same_bits(ours.read(name), theirs.read(name)) for name in places.values()}


def sharded(out: Path, family: str) -> dict[str, Any]:
    """The same in bf16 under ZeRO-3, stopped after a step and gone on with: what hf/ holds."""
    model = out / "models" / family
    one = experiment(out / "sharded", family, model, zero_stage=3, precision="bf16")
    hf = StageStore(one.folder).folder(train(one, stop_after=1).jobs[-1].key) / "hf"
    files = FolderWeights(hf)
    return {"kept": kept_in(hf, model), "dtypes": sorted({str(files.read(name).dtype) for name in files.names()})}


def through(out: Path, family: str) -> dict[str, Any]:
    """Trains two stages of a few steps, and what came out of them."""
    from transformers import AutoModelForCausalLM

    from trainer.network.model import build_model

    model = save_model(family, out / "models" / family, TEXTS)
    one = experiment(out, family, model)
    prepared = train(one)
    stage = StageStore(one.folder).folder(prepared.jobs[-1].key)
    manifest = json.loads((stage / "manifest.json").read_text())
    trained = build_model(str(model), "eager", torch.float32)
    load_into(trained, FragmentWeights(stage / "weights", manifest["shapes"], 1))
    reloaded, told = AutoModelForCausalLM.from_pretrained(stage / "hf", attn_implementation="eager", output_loading_info=True)
    before = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        of_network, of_files, at_start = (m.eval()(input_ids=ids, use_cache=False).logits for m in (trained, reloaded, before))
    examiner = Generator(str(stage / "hf"), None, 128, EngineOptions())
    prompts = [[5, 9, 33, 60, 7], [8] * 9, [12, 40, 77, 100, 3, 21, 90], [9, 9, 9, 9, 9]]
    answers = examiner.answer(prompts, 12, 2)
    said = [prompt + answer["token_ids"] for prompt, answer in zip(prompts, answers, strict=True)]
    events = (one.folder / "logs" / "events-00000.jsonl").read_text().splitlines()
    return {
        "hf": str(stage / "hf"),
        "kept": kept_in(stage / "hf", model),
        "sharded": sharded(out, family) if family in SHARDED else None,
        "events": [json.loads(line)["message"] for line in events],
        "one_item": manifest["one_item_rows"],
        "attention": manifest["attention"],
        "missing": sorted(told["missing_keys"]),
        "unexpected": sorted(told["unexpected_keys"]),
        "export": float((of_network - of_files).abs().max()),
        "moved": float((of_network - at_start).abs().max()),
        "bad_steps": manifest["totals"]["bad_steps"],
        "steps": manifest["totals"]["steps"],
        "prompts": prompts,
        "answers": [answer["token_ids"] for answer in answers],
        "own": [answer["logprob"] for answer in answers],
        "of_own": examiner.log_likelihoods(said, [len(prompt) for prompt in prompts]),
    }


def main() -> None:
    out, families = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    drive.begin_alone()
    for family in families:
        (out / f"{family}.json").write_text(json.dumps(through(out, family)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
