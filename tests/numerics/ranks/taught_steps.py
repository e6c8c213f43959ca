"""A stage with a teacher and an anchor, by DeepSpeed in a gloo process group, paused and gone on with; and the same in plain torch, item by item.

main runs in tests/helpers/forked.py's groups; `losses_in_plain_torch` shares nothing with the product but the plan, the records and the schedule.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data.config import Stage
from data.curriculum.plan import load_plan
from data.tokens import load_tokenizer
from experiment import Experiment, load_experiment
from tests.helpers.experiments import tiny
from trainer.schedule import learning_rate
from trainer.step.plain import PlainEngine

_EXPERIMENT = (
    tiny("taught", 6, 6, 4)
    + """\
base:
  - {{mix: {{replay_documents: 1, replay_questions: 1}}, epochs: 4, batch_items: 12, rate: 1.0e-2}}
arms:
  taught: ARM
trainer: {{row_tokens: 256, log_every_steps: 1, clip: 0.5}}
"""
)
_NEW, _ALL = "train_documents: 1, train_questions: 1", "train_documents: 1, train_questions: 1, replay_documents: 1, replay_questions: 1"
TAUGHT = f"teach: {{share: 0.7}}, anchor: {{weight: 2.0, cross_entropy: 0.5}}, stages: [{{mix: {{{_ALL}}}, epochs: 1, batch_items: 16, rate: 2.0e-3}}]"
OWN = f"teach: {{answers: own, share: 1, answer_tokens: 6, temperature: 0.5, rounds: 2}}, stages: [{{mix: {{{_NEW}}}, epochs: 2, batch_items: 12, rate: 2.0e-3}}]"
"""On-policy: what is answered is drawn from the model that is taught, anew in each of two rounds."""
EWC = f"anchor: {{weight: 0, ewc: 300}}, stages: [{{mix: {{{_ALL}}}, epochs: 2, batch_items: 24, rate: 2.0e-3}}]"
"""Weights that replay items need stay near the start."""
PAUSE = 3


def experiment_of(arm: str, folder: Path) -> Path:
    """A file with one arm, and runs beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "taught.yaml"
    path.write_text(_EXPERIMENT.replace("ARM", "{{" + arm.replace("{", "{{").replace("}", "}}") + "}}").format(runs=folder / "runs"))
    return path


def losses_of(run: Path) -> list[float]:
    """Of the arm's own stages, by step."""
    stages = {
        path.parent: manifest for path in run.glob("stages/*/manifest.json") if (manifest := json.loads(path.read_text()))["job"]["parent"]
    }
    losses: list[float] = []
    for stage in sorted(stages, key=lambda stage: stages[stage]["job"]["number"]):
        rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(len(rows))), "a step was repeated or skipped"
        losses += [row["loss"] for row in rows]
    return losses


def main(out: Path, world_size: int, rank: int, path: str, *zero_stages: str) -> None:
    """`path`: an experiment whose base is trained; every ZeRO stage trains its arm in a copy of the run, paused after three steps."""
    from tests.helpers.forked import prepared_for
    from trainer import drive, run
    from trainer.jobs.worker_settings import WorkerSettings
    from trainer.store.stages import StageStore
    from trainer.watch.supervise import resume_points
    from trainer.worker import train_jobs

    for zero_stage in zero_stages:
        runs = out / f"zero{zero_stage}"
        if rank == 0:
            shutil.copytree(load_experiment(path).folder, runs / "taught")
        torch.distributed.barrier()
        experiment = load_experiment(path, [f"runs={runs}", f"trainer.zero_stage={zero_stage}"])
        prepared = prepared_for(experiment)
        jobs = run.pending(experiment.folder, prepared)
        for pause in (PAUSE, None):
            torch.distributed.barrier()  # rank 0 commits what is saved
            settings = WorkerSettings(
                str(experiment.folder.resolve()), prepared.model_folder, experiment.trainer, prepared.precision, 0, False,
                pause_after={jobs[0].key: pause} if pause else {},
            )  # fmt: skip
            train_jobs(settings, jobs, drive.rows_without_ray(prepared, 0), resume_points(StageStore(experiment.folder), jobs))
        torch.distributed.barrier()


def losses_in_plain_torch(experiment: Experiment, behind_document: bool = True, top: int = 20, teacher_moves: bool = False) -> list[float]:
    """`behind_document`, `teacher_moves`: for twins: a teacher without the document, or one that is the student itself."""
    from transformers import AutoModelForCausalLM

    from tests.helpers.forked import prepared_for

    prepared = prepared_for(experiment)
    stage, records, ids = experiment.stages("taught")[-1], prepared.catalogue.records, prepared.catalogue.ids
    of_id = {f"{kind}/{record.id}": record for kind, rows in records.items() for record in rows}
    hf = experiment.folder / "stages" / prepared.keys["base"][-1] / "hf"
    student, teacher = (AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager") for _ in range(2))
    tokenizer = load_tokenizer(prepared.model_folder)
    read = _reader(tokenizer)
    plan = load_plan(Path(next(job for job in prepared.jobs if job.key == prepared.keys["taught"][-1]).plan_path))
    engine = PlainEngine(student, experiment.trainer.betas, experiment.trainer.weight_decay, experiment.trainer.clip)
    losses = []
    for step in range(plan.num_steps):
        items = [ids[item] for item in plan.step(step)]
        total: Tensor = torch.zeros(())
        for name in items:
            record = of_id[name]
            own, first = read(record, None)
            document = of_id[f"train_documents/{record.doc_id}"] if name.startswith("train_questions") and behind_document else None
            logits = _targets(student, own, first)
            nll = cross_entropy(logits, torch.tensor(own[first:]))
            with torch.no_grad():
                told = _targets(student if teacher_moves else teacher, *read(record, document)).double().softmax(dim=-1)
            total = total + _loss(name, stage, nll, _kl(told, logits.double().softmax(dim=-1), top)) / len(items)
        engine.backward(total)
        engine.step(learning_rate(stage, step, plan.num_steps))
        losses.append(float(total.detach()))
    return losses


def own_losses_in_plain_torch(experiment: Experiment, closed: bool = True, renewed: bool = True) -> list[float]:
    """Of stages whose questions are answered by their start. `closed`, `renewed`: for twins: answers drawn with the document in view, or once for all rounds."""
    from transformers import AutoModelForCausalLM

    from tests.helpers.forked import prepared_for

    prepared = prepared_for(experiment)
    records, ids = prepared.catalogue.records, prepared.catalogue.ids
    of_id = {f"{kind}/{record.id}": record for kind, rows in records.items() for record in rows}
    hf = experiment.folder / "stages" / prepared.keys["base"][-1] / "hf"
    student = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager")
    tokenizer = load_tokenizer(prepared.model_folder)
    read = _reader(tokenizer)
    base, losses, answers = len(experiment.stages("base")), [], {}
    for number, (stage, key) in enumerate(zip(experiment.stages("taught"), prepared.keys["taught"], strict=True)):
        if number < base:
            continue
        start = copy.deepcopy(student)
        if renewed or not answers:
            answers = {}
        plan = load_plan(Path(next(job for job in prepared.jobs if job.key == key).plan_path))
        engine = PlainEngine(student, experiment.trainer.betas, experiment.trainer.weight_decay, experiment.trainer.clip)
        for step in range(plan.num_steps):
            total: Tensor = torch.zeros(())
            for item in map(int, plan.step(step)):
                record = of_id[ids[item]]
                own, first = read(record, None)
                if not ids[item].startswith("train_questions"):
                    total = total + cross_entropy(_targets(student, own, first), torch.tensor(own[first:])) / len(plan.step(step))
                    continue
                behind, later = read(record, of_id[f"train_documents/{record.doc_id}"])
                if item not in answers:
                    answers[item] = _answer(
                        start, own[:first] if closed else behind[:later], [experiment.seed, number, item], tokenizer.eos_token_id
                    )
                with torch.no_grad():
                    told = _targets(start, behind[:later] + answers[item], later).double().softmax(dim=-1)
                said = _targets(student, own[:first] + answers[item], first).double().softmax(dim=-1)
                total = total + _kl(told, said, 20) / len(plan.step(step))
            engine.backward(total)
            engine.step(learning_rate(stage, step, plan.num_steps))
            losses.append(float(total.detach()))
    return losses


def ewc_losses_in_plain_torch(experiment: Experiment, strength: float = 300, alike: bool = False) -> list[float]:
    """`alike`: for a twin: every weight matters as much as any other."""
    from transformers import AutoModelForCausalLM

    from tests.helpers.forked import prepared_for

    prepared = prepared_for(experiment)
    stage, records, ids = experiment.stages("taught")[-1], prepared.catalogue.records, prepared.catalogue.ids
    of_id = {f"{kind}/{record.id}": record for kind, rows in records.items() for record in rows}
    hf = experiment.folder / "stages" / prepared.keys["base"][-1] / "hf"
    student = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager")
    read = _reader(load_tokenizer(prepared.model_folder))
    plan = load_plan(Path(next(job for job in prepared.jobs if job.key == prepared.keys["taught"][-1]).plan_path))

    def loss_of(items: list[int]) -> Tensor:
        return (
            sum(  # type: ignore[return-value]
                cross_entropy(_targets(student, *found), torch.tensor(found[0][found[1] :]))
                for found in (read(of_id[ids[item]], None) for item in items)
            )
            / len(items)
        )

    parameters = list(student.parameters())
    squares = [torch.zeros_like(one) for one in parameters]
    held = [item for item in sorted(set(map(int, plan.items))) if ids[item].startswith("replay_")]
    for n in range(0, len(held), 4):
        for square, gradient in zip(squares, torch.autograd.grad(loss_of(held[n : n + 4]), parameters), strict=True):
            square.mul_(0.9999).add_(gradient**2 * 1e-4)
    mean = sum(float(square.double().sum()) for square in squares) / sum(square.numel() for square in squares)
    start = [one.detach().clone() for one in parameters]
    engine = PlainEngine(student, experiment.trainer.betas, experiment.trainer.weight_decay, experiment.trainer.clip)
    losses = []
    for step in range(plan.num_steps):
        rate = learning_rate(stage, step, plan.num_steps)
        loss = loss_of([int(item) for item in plan.step(step)])
        engine.backward(loss)
        with torch.no_grad():
            for weight, begun, square in zip(parameters, start, squares, strict=True):
                pull = rate * strength * (torch.ones_like(square) if alike else square / mean)
                weight.copy_((weight + pull * begun) / (1 + pull))
        engine.step(rate)
        losses.append(float(loss.detach()))
    return losses


def _answer(model: torch.nn.Module, prompt: list[int], seed: list[int], end: int) -> list[int]:
    """Six tokens at temperature 0.5, or until its end."""
    answer: list[int] = []
    while len(answer) < 6 and end not in answer:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, -1]
        up_to = np.cumsum((logits.double() * 2).softmax(dim=-1).numpy())
        answer.append(int((up_to <= np.random.default_rng([*seed, len(answer), 5]).random() * up_to[-1]).sum()))
    return answer


def _reader(tokenizer: Any) -> Callable[[Any, Any], tuple[list[int], int]]:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def read(record: Any, document: Any) -> tuple[list[int], int]:
        """(tokens, the first one that is learnt)."""
        begin = [tokenizer.bos_token_id]
        if not hasattr(record, "question"):
            return begin + encode(record.text), 1
        passage = encode(f"{document.text}\n\n") if document else []
        prompt = f"Question: {record.question} Answer:"
        first = len(begin + passage + encode(prompt))
        return begin + passage + encode(f"{prompt} {record.answers[0]}") + [tokenizer.eos_token_id], first

    return read


def _targets(model: torch.nn.Module, ids: list[int], first: int) -> Tensor:
    """Logits (n, V) that predict the tokens from `first` on."""
    logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits[first - 1 : -1]


def _loss(name: str, stage: Stage, nll: Tensor, kl: Tensor) -> Tensor:
    assert stage.teach and stage.anchor
    if name.startswith("train_questions"):
        return (1 - stage.teach.share) * nll + stage.teach.share * kl
    if name.startswith("replay_"):
        return stage.anchor.cross_entropy * nll + stage.anchor.weight * kl
    return nll


def _kl(p: Tensor, q: Tensor, top: int) -> Tensor:
    """The mean over targets of Σ p log (p / q) over the teacher's `top` tokens and the rest, from probabilities in fp64."""
    at = p.argsort(dim=-1, descending=True)[:, :top]
    parts = [torch.cat([x.gather(1, at), x.scatter(1, at, 0.0).sum(dim=-1, keepdim=True)], dim=1) for x in (p, q)]
    return (parts[0] * (parts[0] / parts[1]).log()).sum(dim=-1).mean()
