"""lm-evaluation-harness for real, on a tiny random model: benchmarks from local files, multiple choice, failures that are missing."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from console import UserError
from data.records import ChoiceQuestion, Corpus, OverlapReport, Part
from evaluation.config import ExamConfig
from evaluation.harness import _path, blocks, job_of, measure, pending, plan_measures, run_job
from evaluation.lm_eval_job import own_rows
from evaluation.score_files import TrainedArm
from tests.conftest import ROOT

CHOICES = [ChoiceQuestion(f"c{i}", f"Where was {i}?", ("A) Oslo", "B) Rome", "C) Bern", "D) Paris"), i % 4) for i in range(12)]
TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

# lm-eval's own GSM8K, with its prompt, filters and shots, over questions of this disk.
GSM8K = """
include: {own}
task: gsm8k_here
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 8}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasks/capitals.yaml with its data, and two models: base and tuned."""
    import lm_eval

    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    folder = tmp_path_factory.mktemp("harness")
    tasks = folder / "tasks"
    tasks.mkdir()
    rows = [{"q": f"What is {i}?", "options": ["one", "two"], "gold": i % 2} for i in range(12)]
    (tasks / "capitals.json").write_text(json.dumps(rows))
    (tasks / "capitals.yaml").write_text(TASK.format(data=tasks / "capitals.json"))
    sums = [{"question": f"{i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(8)]
    (tasks / "gsm8k.json").write_text(json.dumps(sums))
    own = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml"
    (tasks / "gsm8k_here.yaml").write_text(GSM8K.format(own=own, data=tasks / "gsm8k.json"))
    for seed, name in enumerate(("base", "tuned")):
        make_tiny_model(folder / name, TinyModel(vocab_size=400, max_positions=128), ["Where was one two?"], seed)
    return folder


def corpus(leaked: tuple[str, ...] = ()) -> Corpus:
    return Corpus({"test": Part(choices=list(CHOICES))}, [], OverlapReport("allow", question_ids=leaked))


def config(place: Path, **benchmarks: Any) -> ExamConfig:
    given = {"tasks": ["capitals"], "tasks_folder": str(place / "tasks"), "offline": True, "backend": "hf", "limit": 10, **benchmarks}
    return ExamConfig.model_validate({"resamples": 200, "benchmarks": given})


def arm(place: Path, name: str) -> TrainedArm:
    return TrainedArm(name, str(place / name), f"weights of {name}", None, False, {"hf": name})


@pytest.mark.timeout(400)
def test_before_and_after_on_ray(place: Path, tmp_path: Path, ray_cluster: str) -> None:
    """Scores, changes and letters from real likelihoods; a task without its data is missing with its reason and the others are there."""
    arms = [arm(place, "base"), arm(place, "tuned")]
    made = config(place, tasks=["capitals", "arc_easy", "gsm8k_here"])
    measures = plan_measures(corpus(("c0", "c1")), made, tmp_path, 0)
    assert pending(arms, measures, made, tmp_path, 0) == {a.name: list(measures.identity) for a in arms}
    missing = measure(arms, pending(arms, measures, made, tmp_path, 0), measures, made, tmp_path, 0, gpus=0)
    assert set(missing) == {"base", "tuned"} and set(missing["base"]) == {"arc_easy"}
    assert pending(arms, measures, made, tmp_path, 0) == {"base": ["arc_easy"], "tuned": ["arc_easy"]}  # tried again, the rest is kept
    found = blocks(arms, measures, missing, corpus(("c0", "c1")), made, tmp_path, 0)
    json.dumps(found, allow_nan=False)
    task = found["benchmarks"]["tasks"]["capitals acc"]
    assert set(task["arms"]) == {"base", "tuned"} and task["arms"]["tuned"]["n"] == 10
    after, before = task["arms"]["tuned"]["mean"], task["arms"]["base"]["mean"]
    assert task["change"]["tuned"]["mean"] == pytest.approx(after - before)
    extracted = {name: block for name, block in found["benchmarks"]["tasks"].items() if name.startswith("gsm8k_here")}
    assert set(extracted) == {"gsm8k_here exact_match (strict-match)", "gsm8k_here exact_match (flexible-extract)"}
    assert all(block["shots"] == 5 and set(block["arms"]) == {"base", "tuned"} for block in extracted.values())
    assert "arc_easy" not in json.dumps(found["benchmarks"]["tasks"]), "a failure is no score"
    assert "ai2_arc" in found["benchmarks"]["missing"]["tuned"]["arc_easy"]
    forms = found["choices"]["arms"]["tuned"]["closed"]
    assert set(forms) == {"printed", "shuffled", "text"}
    assert forms["printed"]["n"] == 12 and sum(forms["printed"]["letters"].values()) == pytest.approx(1)
    assert forms["printed"]["gold"] == {"A": 3, "B": 3, "C": 3, "D": 3}
    assert found["choices"]["leakage"] == {"count": 2, "share": pytest.approx(1 / 6)}
    printed = "choices_closed_printed"
    measured = json.loads(_path(tmp_path, arms[1], printed, measures, made, 0).read_text())["likelihoods"]["c3"]
    assert measured == pytest.approx(_by_transformers(place / "tuned", measures.asked[printed][3]), abs=1e-4)  # float32, other batches


def _by_transformers(model: Path, asked: Any) -> list[float]:
    """Log-likelihood of each option after prompt + space, in fp32; the tokenizer puts <s> before them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    values = []
    for option in asked.options:
        prompt = tokenizer(asked.prompt)["input_ids"]
        whole = tokenizer(asked.prompt + " " + option)["input_ids"]
        with torch.no_grad():
            logprobs = network(torch.tensor([whole])).logits[0].log_softmax(-1)
        values.append(sum(float(logprobs[i - 1, whole[i]]) for i in range(len(prompt), len(whole))))
    return values


def test_time_is_up_and_a_model_that_is_none(place: Path, tmp_path: Path) -> None:
    made = config(place)
    tasks = plan_measures(Corpus({}), made, tmp_path, 0).tasks
    result, failure = run_job(job_of(arm(place, "base"), tasks, made, 0, 0), timeout_s=0.5)
    assert (result, failure) == ({}, "not done within 0.5 s")
    result, failure = run_job({**job_of(arm(place, "base"), tasks, made, 0, 0), "model": str(tmp_path)}, timeout_s=200)
    assert result == {} and failure is not None and "exit code 1" in failure


def test_settings_that_cannot_be(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exam\.benchmarks\.tasks_folder: .*nowhere is not a folder"):
        plan_measures(corpus(), config(place, tasks_folder=str(tmp_path / "nowhere")), tmp_path, 0)
    with pytest.raises(UserError, match=r"exam\.benchmarks\.shots: gsm8k is not among"):
        plan_measures(corpus(), config(place, shots={"gsm8k": 3}), tmp_path, 0)


def test_paper_shots_and_what_asks_for_a_new_measure(place: Path, tmp_path: Path) -> None:
    made = config(place, tasks=["mmlu", "piqa", "capitals"], shots={"capitals": 2}, limit=None)
    measures = plan_measures(corpus(), made, tmp_path, 0)
    assert {t["name"]: t["shots"] for t in measures.tasks[:3]} == {"mmlu": 5, "piqa": None, "capitals": 2}
    again = plan_measures(corpus(), config(place, tasks=["mmlu", "piqa", "capitals"], shots={"capitals": 3}, limit=None), tmp_path, 0)
    changed = {name for name in measures.identity if measures.identity[name] != again.identity[name]}
    assert changed == {"capitals"}
    assert not plan_measures(Corpus({}), ExamConfig(), tmp_path, 0).tasks


def test_who_measures(place: Path, tmp_path: Path) -> None:
    """vLLM on GPUs, but for what it lacks, what the exam is to do without, and ropes of which it would take one set of factors for all."""
    rope = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 64}

    def job(config_json: dict[str, Any], gpus: int = 1, **exam: Any) -> tuple[str, int]:
        (tmp_path / "config.json").write_text(json.dumps(config_json))
        made = job_of(TrainedArm("a", str(tmp_path), "w", None, False, {}), [], ExamConfig(**exam), 0, gpus)
        return made["backend"], made["batch_items"]

    llama, bamba = {"model_type": "made-up"}, {"model_type": "bamba"}
    assert (job(llama), job(llama, gpus=0), job(llama, engine="transformers")) == (("vllm", 16), ("hf", 16), ("hf", 16))
    assert (job(bamba), job({**llama, "rope_scaling": rope})) == (("hf", 16), ("hf", 1))
    assert job(bamba, benchmarks={"backend": "vllm"}) == ("vllm", 16)


def test_ends_with_the_process_that_started_it(place: Path, tmp_path: Path) -> None:
    """As when Ray kills its worker: nobody is left to stop the child."""
    job = job_of(arm(place, "base"), [{"name": "capitals", "shots": 0, "limit": 10}], config(place), 0, gpus=0)
    (tmp_path / "job.json").write_text(json.dumps(job))
    start = "import subprocess as s, sys, time; print(s.Popen(sys.argv[1:]).pid, flush=True); time.sleep(120)"
    command = [sys.executable, "-m", "evaluation.lm_eval_job", str(tmp_path / "job.json"), "-"]
    with subprocess.Popen([sys.executable, "-c", start, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(3)  # its first line has run
        assert child.is_running()
        parent.kill()
    assert psutil.wait_procs([child], timeout=20)[0] == [child]


def test_rows_are_handed_over_by_a_schema(tmp_path: Path) -> None:
    """Dates stay texts, as options and as ids, and brackets in a path are no pattern: `datasets` left alone makes both something else."""
    import datasets

    folder = tmp_path / "run [1]"
    folder.mkdir()
    rows = [{"id": day, "prompt": "When?", "options": [day, "1999-05-02"], "gold": 0} for day in ("2001-03-01", "2004-05-02")]
    (folder / "c.json").write_text(json.dumps(rows))
    assert list(own_rows(folder / "c.json")) == rows
    (tmp_path / "c.json").write_text(json.dumps(rows))
    guessed = datasets.load_dataset("json", data_files=str(tmp_path / "c.json"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(guessed) != rows  # the twin
