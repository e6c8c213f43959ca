"""Scores, embedders and merged models by what is in them: other bytes ask for a new one, equal bytes elsewhere do not; what answered is named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.curriculum.arm_config import Merge
from data.records import Corpus, Document, Part, Question
from evaluation.config import ExamConfig, RetrievalConfig
from evaluation.engines.gpus import Gpu, await_free_gpus
from evaluation.exam import build_exam
from evaluation.examining.retrieval import store_key
from evaluation.report.alike import mixed, read_alike
from evaluation.report.render import baseline_lines
from evaluation.report.report import build_report
from evaluation.score_files import TrainedArm, is_scored, newest_score, read_score, score_stem, trained_arms, write_score
from trainer.merging.merge import ingredients

ROW = {
    "set": "test",
    "mode": "closed",
    "question_id": "q",
    "doc_id": "a",
    "prompt": "p",
    "answer": "x",
    "output": "x",
    "gold": ["x"],
    "em": 1.0,
}


def corpus() -> Corpus:
    part = Part([Document("a", "The answer is x.")], [Question("q", "What is it?", ("x",), "a")])
    return Corpus({"train": part, "test": part, "replay": Part([], [])})


def arm(name: str, weights: str = "w") -> TrainedArm:
    return TrainedArm(name, f"/{name}", weights, None, False, {"hf": name, "stage": None})


def score(folder: Path, of: TrainedArm, dtype: str, engine: str, exam: str = "exam") -> Path:
    stem = score_stem(folder, of, exam)
    rows = [{**ROW, "recall": 1.0, "f1": 1.0, "rouge_l": 1.0, "answer_tokens": 1}]
    write_score(stem, of.name, 0, rows, {"dtype": dtype, "engine": engine, "weights": of.weights, "documents": []})
    return stem


def test_what_answered_is_in_the_name(tmp_path: Path) -> None:
    stem = score(tmp_path, arm("pit"), "float32", "vLLM")
    score(tmp_path, arm("pit"), "bfloat16", "transformers' generate: vLLM lacks it")
    names = {path.name.removeprefix(stem.name) for path in (tmp_path / "scores").iterdir()}
    assert names == {f".{way}.{kind}" for way in ("float32-vllm", "bfloat16-transformers") for kind in ("json", "parquet")}
    assert is_scored(stem, "vllm") and is_scored(stem, "transformers") and is_scored(stem)
    newest, named = read_score(stem), read_score(stem, "vllm")
    assert newest and newest.about["dtype"] == "bfloat16" and named and named.about["dtype"] == "float32"
    assert newest_score(tmp_path, arm("pit")) and not newest_score(tmp_path, arm("pi"))
    score(tmp_path, arm("mix"), "float32", "vLLM")
    assert not is_scored(score_stem(tmp_path, arm("mix"), "exam"), "transformers"), "another engine was asked for"


def test_scores_that_can_be_compared_are_taken(tmp_path: Path) -> None:
    """One arm was answered twice: the score that the others have is read. Where there is no such choice, it is said."""
    stems = {name: score(tmp_path, arm(name), "float32", "vLLM") for name in ("base", "pit")}
    score(tmp_path, arm("pit"), "bfloat16", "vLLM")
    alike = read_alike(stems)
    assert {one.about["dtype"] for one in alike.values()} == {"float32"} and mixed(alike) == {}
    stems["old"] = score(tmp_path, arm("old"), "", "")
    assert mixed(read_alike(stems)) == {}, "a score that does not say"
    stems["mix"] = score(tmp_path, arm("mix"), "bfloat16", "vLLM")
    assert mixed(read_alike({name: stems[name] for name in ("base", "mix")})) == {"float32, vllm": ["base"], "bfloat16, vllm": ["mix"]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_report_that_mixes_them_says_so(tmp_path: Path, dtype: str) -> None:
    arms, config, made = [arm("base"), arm("pit")], ExamConfig(modes=["closed"]), corpus()
    exam = build_exam(made, config, 0)
    stems = {one.name: score(tmp_path, one, "float32" if one.name == "base" else dtype, "vLLM", exam.fingerprint()) for one in arms}
    report = build_report("x", 0, config, exam, made, arms, read_alike(stems), {})
    told = [line for line in baseline_lines(report) if "different dtypes or engines" in line]
    assert len(told) == (dtype != "float32") and bool(report["mixed"]) == (dtype != "float32")
    if told:
        assert "float32, vllm: base; bfloat16, vllm: pit" in told[0] and "exam.dtype" in told[0]


def test_scores_of_earlier_versions_stay(tmp_path: Path) -> None:
    """Their names have no dtype and no engine, and foreign weights stood in keys by sizes and times."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "arms.json").write_text(json.dumps({"arms": {"base": {"hf": str(model), "stage": None}}, "records_sha256": "r"}))
    [base] = trained_arms(tmp_path)[0]
    assert base.earlier and base.weights.startswith("contents:")
    old = TrainedArm("base", base.path, base.earlier, None, False, base.entry)
    before = score_stem(tmp_path, old, "exam")
    write_score(before, "base", 0, [{**ROW}], {"weights": base.earlier, "documents": []})
    now = score_stem(tmp_path, base, "exam")
    assert now != before and is_scored(now) and not before.with_name(f"{before.name}.json").exists()
    found = newest_score(tmp_path, base)
    assert found is not None and found.about["weights"] == base.earlier
    status = (model / "model.safetensors").stat()
    (model / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(model / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    [other] = trained_arms(tmp_path)[0]
    assert other.earlier == base.earlier and not is_scored(score_stem(tmp_path, other, "exam")), (
        "the twin: other weights behind the same times"
    )


def test_an_embedder_is_what_is_in_its_folder(tmp_path: Path) -> None:
    for name, content in (("one", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        os.utime(tmp_path / name / "model.safetensors", (1, 1))

    def keys(name: str) -> tuple[str, str]:
        from evaluation.exam import embedder_contents

        retrieval = RetrievalConfig(embedder=str(tmp_path / name))
        made = corpus()
        exam = build_exam(made, ExamConfig(retrieval=retrieval), 0, ("closed", "retrieval"), run_folder=tmp_path)
        return exam.fingerprint(), store_key({"test": made.part("test").documents}, retrieval, embedder_contents(retrieval, tmp_path))

    one, same, other = keys("one"), keys("same"), keys("other")
    assert one == same and one[0] != other[0] and one[1] != other[1]


def test_a_merged_model_has_the_chat_template_of_now(tmp_path: Path) -> None:
    """The sum has the instruct model's template: another one makes another sum, the same in another place does not."""
    for name in ("base", "instruct"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "instruct" / "chat_template.jinja").write_text("{{ one }}")
    (tmp_path / "arms.json").write_text(json.dumps({"arms": {}}))

    def parts(instruct: str) -> tuple[str, str]:
        found = ingredients(tmp_path, {"base": str(tmp_path / "base"), "instruct": str(tmp_path / instruct)})["instruct"]
        return found.identity, found.described

    before = parts("instruct")
    shutil.copytree(tmp_path / "instruct", tmp_path / "moved", copy_function=shutil.copyfile)
    assert parts("moved") == before
    (tmp_path / "instruct" / "chat_template.jinja").write_text("{{ two }}")
    assert parts("instruct")[0] == before[0] and parts("instruct")[1] != before[1]
    assert Merge(of="a", instruct="b").base == "base"


# ── GPUs for several engines ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_starts_when_its_gpus_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of the engine before let go of GPU 1 at the third look; GPU 0 is another's. The twin: who never lets go is waited for in vain."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,2")
    used = iter([9e9, 9e9, 0.0])
    looks: list[int] = []

    def look() -> list[Gpu]:
        looks.append(1)
        return [Gpu("0", "GPU-a", 80e9, 70e9), Gpu("1", "GPU-b", 80e9, next(used, 0.0)), Gpu("2", "GPU-c", 80e9, 1e9)]

    assert await_free_gpus(look, 20.0) and len(looks) == 3
    assert not await_free_gpus(lambda: [Gpu("2", "GPU-c", 80e9, 70e9)], 0.0)
    assert await_free_gpus(lambda: [], 0.0), "a machine without GPUs"


class StandIn:
    """Answers "x" to everything, slowly; writes down which process answered for which model."""

    def __init__(self, path: str, revision: str | None, max_model_len: int, options: Any) -> None:
        import time

        self._path, self._sleep = path, time.sleep

    def load(self, path: str) -> bool:
        self._path = path
        return True

    def probe(self) -> float:
        return float(sum(self._path.encode()))

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[dict[str, Any]]:
        self._sleep(0.5)
        with open(f"{self._path}/answered-by", "a") as file:
            file.write(f"{os.getpid()} ")
        return [{"token_ids": [1], "text": "x", "finish_reason": "stop", "logprob": -1.0} for _ in prompts]

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        return [-1.0] * len(sequences)


def test_models_are_dealt_out_to_engines(ray_cluster: str, tmp_path: Path) -> None:
    from evaluation.engines.options import EngineOptions
    from evaluation.examining.examine import examine
    from trainer.config import TinyModel
    from trainer.network.model import make_tiny_model

    todo, exam = [], build_exam(corpus(), ExamConfig(modes=["closed"]), 0)
    for name in ("a", "b", "c", "d"):
        make_tiny_model(tmp_path / name, TinyModel(hidden_size=32, layers=1, vocab_size=300), ["What is it? The answer is x."], 0)
        todo.append((TrainedArm(name, str(tmp_path / name), name, None, False, {"hf": name, "stage": None}), exam))
    assert examine(todo, tmp_path, 0, EngineOptions(cpus=0.1, engines=2), examiner=StandIn) == {}
    assert all(is_scored(score_stem(tmp_path, one, exam.fingerprint(one.template))) for one, _ in todo)
    processes = {pid for name in "abcd" for pid in (tmp_path / name / "answered-by").read_text().split()}
    assert len(processes) == 2
