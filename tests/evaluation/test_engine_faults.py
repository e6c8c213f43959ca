"""Engines that crash, hang, keep old weights or answer otherwise: what is noticed, and what becomes of the exam."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation import engine as engine_module
from evaluation.config import ExamConfig
from evaluation.engine import Engine, EngineFailure
from evaluation.engines.agreement import Saying
from evaluation.engines.network import network
from evaluation.engines.options import Answer, EngineOptions
from evaluation.exam import build_exam
from evaluation.examining import examine
from evaluation.score_files import TrainedArm, read_score, score_stem
from tests.evaluation.test_engine import EOS, OPTIONS
from tests.evaluation.test_exam import Letters, corpus
from tests.faults.promises import F17


class Fake:
    """An examiner without vLLM: its weights are the last path that it was given, and its log-likelihood the path's number."""

    def __init__(self, path: str, revision: str | None, max_model_len: int, options: EngineOptions) -> None:
        self.path = path

    def load(self, path: str) -> bool:
        self.path = path
        return True

    def probe(self) -> float:
        return -float(self.path[-1])

    def log_likelihoods(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[float]:
        return [self.probe()] * len(sequences)

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        return [Answer(token_ids=[eos_id], text=self.path, finish_reason="stop", logprob=-1.0) for _ in prompts]


class Stale(Fake):
    """Says that it loaded, and keeps the old weights."""

    def load(self, path: str) -> bool:
        return True


class CrashesOnce(Fake):
    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        if not Path(self.path, "crashed").exists():
            Path(self.path, "crashed").touch()
            os._exit(1)
        return super().answer(prompts, max_tokens, eos_id)


class KilledMidway(Fake):
    """Its process is killed from outside while it answers for the second time; the one that takes its place is not."""

    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        asked = Path(self.path, "asked")
        count = int(asked.read_text()) if asked.exists() else 0
        asked.write_text(str(count + 1))
        if count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return super().answer(prompts, max_tokens, eos_id)


class Hangs(Fake):
    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        time.sleep(3600)
        return []


class Refuses(Fake):
    def __init__(self, path: str, revision: str | None, max_model_len: int, options: EngineOptions) -> None:
        raise ValueError("this architecture is not supported")


@F17
def test_a_stale_engine_is_noticed_and_replaced(ray_cluster: Any) -> None:
    with Engine(OPTIONS, Stale) as engine:
        assert engine.open("weights-1", "one", 64) == -1
        stale = engine._actor
        assert engine.open("weights-2", "two", 64) == -2
        assert engine._actor is not stale
        assert engine.answer([[1]], 4, EOS)[0]["text"] == "weights-2"


class Compared(Fake):
    """Says of weights-N that a token costs N nats, and knows that transformers says the same; the folder's name says what goes wrong."""

    def by_transformers(self, path: str, revision: str | None, sequences: list[list[int]], starts: list[int]) -> list[float]:
        return [-float(path[-1]) * (len(s) - start) for s, start in zip(sequences, starts, strict=True)]

    def sayings(self) -> list[Saying]:
        off = 1.5 if "bad" in self.path and self.loads else 1.0
        return [Saying([0] * (start + 4), start, -float(self.path[-1]) * 4 * off) for start in (1, 5)]

    loads = 0

    def load(self, path: str) -> bool:
        self.loads += 1
        return super().load(path)


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_the_first_swap_decides_for_the_network(ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folders = []
    for n in (1, 2, 3):
        folders.append(tmp_path / f"{kind}-{len(folders)}-{n}")
        folders[-1].mkdir()
        (folders[-1] / "config.json").write_text("{}")
    with Engine(OPTIONS, Compared) as engine:
        actors = []
        for folder in folders:
            engine.open(str(folder), folder.name, 64)
            actors.append(engine._actor)
        if kind == "good":
            assert len(set(actors)) == 1 and engine._swaps == {network(str(folders[0])): True}
        else:
            assert len(set(actors)) == 3 and engine._swaps == {network(str(folders[0])): False}
    said = capsys.readouterr().err
    assert said.count("every model of this network gets a new engine") == (kind == "bad")


def test_weights_that_hardly_moved_prove_nothing(ray_cluster: Any, tmp_path: Path) -> None:
    for name in ("good-0-1", "good-1-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with Engine(OPTIONS, Compared) as engine:
        engine.open(str(tmp_path / "good-0-1"), "same", 64)
        engine.open(str(tmp_path / "good-1-1"), "same", 64)
        assert engine._swaps == {}


class OtherwiseThanTransformers(Compared):
    def sayings(self) -> list[Saying]:
        return [Saying([0] * 5, 1, -100.0)]


@pytest.mark.parametrize(
    ("examiner", "why"),
    [
        ("Refuses", "vLLM refuses the model (ValueError: this architecture is not supported)"),
        ("OtherwiseThanTransformers", "vLLM's log-probabilities are up to 24 nats a token from transformers'"),
    ],
)
def test_what_vllm_refuses_or_computes_otherwise_is_asked_of_transformers(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], examiner: str, why: str
) -> None:
    """One line says so; asked for by name, vLLM stays, and the line names the way out."""
    (tmp_path / "weights-1").mkdir()
    (tmp_path / "weights-1" / "config.json").write_text("{}")
    monkeypatch.setattr(engine_module, "Examiner", globals()[examiner])
    monkeypatch.setattr(engine_module, "Generator", Fake)
    with Engine(OPTIONS) as engine:
        assert engine.open(str(tmp_path / "weights-1"), "one", 64) == -1
        assert engine.answer([[1]], 4, EOS)[0]["text"].endswith("weights-1")
        assert engine.by == f"transformers' generate: {why}"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("examined by")]  # Ray shows tracebacks, too
    assert lines[-1] == f"examined by {engine.by}" and len(lines) == 2
    with Engine(EngineOptions(timeout_s=240, backend="vllm")) as engine:
        if examiner == "Refuses":
            with pytest.raises(EngineFailure, match=r"weights-1: vLLM refuses it: ValueError: .*; exam\.engine=transformers \(--engine"):
                engine.open(str(tmp_path / "weights-1"), "one", 64)
        else:
            engine.open(str(tmp_path / "weights-1"), "one", 64)
            assert "exam.engine=transformers (--engine transformers)" in capsys.readouterr().err


def test_an_honest_engine_is_kept(ray_cluster: Any) -> None:
    """The twin of the one above; and only a longer context asks for a new engine."""
    with Engine(OPTIONS, Fake) as engine:
        engine.open("weights-1", "one", 64)
        actor = engine._actor
        assert engine.open("weights-2", "two", 32) == -2
        assert engine._actor is actor
        engine.open("weights-2", "two", 128)
        assert engine._actor is not actor


@F17
def test_a_crash_is_replaced_once(ray_cluster: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights-3"
    path.mkdir()
    with Engine(OPTIONS, CrashesOnce) as engine:
        engine.open(str(path), "three", 64)
        assert engine.answer([[1], [1]], 4, EOS)[1]["text"] == str(path)


@F17
def test_a_hang_ends_in_a_named_failure(ray_cluster: Any) -> None:
    with Engine(OPTIONS, Hangs) as engine:
        engine.open("weights-4", "four", 64)  # starting a process may take long
        engine._options = EngineOptions(timeout_s=3)
        with pytest.raises(EngineFailure, match=r"weights-4: no reply within 3 s \(it needs 1 CPUs and 0 GPUs"):
            engine.answer([[1]], 4, EOS)


def test_a_model_that_cannot_start_says_why(ray_cluster: Any) -> None:
    with Engine(OPTIONS, Refuses) as engine, pytest.raises(EngineFailure, match="ValueError: this architecture is not supported"):
        engine.open("weights-5", "five", 64)


class BadOnes(Fake):
    def answer(self, prompts: list[list[int]], max_tokens: int, eos_id: int) -> list[Answer]:
        if "bad" in self.path:
            raise ValueError("CUDA out of memory")
        return super().answer(prompts, max_tokens, eos_id)


@F17
def test_an_arm_that_fails_is_missing_and_the_next_is_examined(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = []
    for name in ("bad-1", "good-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"max_position_embeddings": 256}')
        arms.append(TrainedArm(name, str(tmp_path / name), name, None, False, {"hf": name}))
    monkeypatch.setattr(examine, "load_tokenizer", lambda path, revision: None)
    monkeypatch.setattr(examine, "Encoder", lambda tokenizer, wording: Letters())
    exam = build_exam(corpus(), ExamConfig(documents=1), seed=0)
    reasons = examine.examine([(arm, exam) for arm in arms], tmp_path, 0, OPTIONS, examiner=BadOnes)
    assert list(reasons) == ["bad-1"]
    assert reasons["bad-1"].endswith("ValueError: CUDA out of memory")
    bad, good = (read_score(score_stem(tmp_path, arm, exam.fingerprint())) for arm in arms)
    assert bad is None
    assert good is not None
    assert good.about["fingerprint"] == -2
    assert len(good.rows) == len(exam.questions)


@F17
def test_an_engine_killed_mid_exam_costs_no_answer(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault F17: 600 questions are three calls; the engine dies in the second."""
    folder = tmp_path / "weights-7"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 256}')
    monkeypatch.setattr(examine, "load_tokenizer", lambda path, revision: None)
    monkeypatch.setattr(examine, "Encoder", lambda tokenizer, wording: Letters())
    exam = build_exam(corpus(test=600), ExamConfig(documents=0, train_questions=0), seed=0)
    arm = TrainedArm("pit", str(folder), "w", None, False, {"hf": "pit"})
    assert examine.examine([(arm, exam)], tmp_path, 0, OPTIONS, examiner=KilledMidway) == {}
    assert (folder / "asked").read_text() == "4"
    score = read_score(score_stem(tmp_path, arm, exam.fingerprint()))
    assert score is not None
    assert [row["question_id"] for row in score.rows] == [question.id for _, question in exam.questions]
    assert score.about["weights"] == "w"
