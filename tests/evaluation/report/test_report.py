"""The report from made scores: values by hand, missing arms, and the words."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from console import RunError
from data.records import Corpus, Document, Intake, OverlapReport, Part, Question
from evaluation.config import ExamConfig
from evaluation.exam import Exam, build_exam
from evaluation.report.blocks import markdown_blocks
from evaluation.report.page import page
from evaluation.report.render import markdown, summary, table_cells
from evaluation.report.report import build_report
from evaluation.score_files import Score, TrainedArm

ANSWERS = ["Oslo", "Rome", "Oslo", "Bern"]


def corpus(overlap: OverlapReport | None = None) -> Corpus:
    """Two test documents with two questions each; the train answers are Rome, Rome, Oslo."""
    test = [Question(f"q{i}", f"Where was {i}?", (a,), doc_id=f"d{i // 2}") for i, a in enumerate(ANSWERS)]
    train = [Question(f"t{i}", f"Where is {i}?", (a,), doc_id="e0") for i, a in enumerate(["Rome", "Rome", "Oslo"])]
    documents = [Document("d0", "Born in Oslo, died in Rome."), Document("d1", "Born in Oslo.")]
    parts = {"test": Part(documents, test), "train": Part([Document("e0", "Rome")], train), "replay": Part()}
    return Corpus(parts, [Intake("qa.jsonl", 7, 7)], overlap)  # type: ignore[arg-type]


def score(exam: Exam, right: set[str], nll: tuple[float | None, float | None]) -> Score:
    rows = [
        {
            "set": name,
            "question_id": q.id,
            "doc_id": q.doc_id,
            "answer": q.answers[0] if q.id in right else "no idea | at *all*",
            "em": float(q.id in right),
            "recall": float(q.id in right),
            "f1": 0.5,
            "rouge_l": 0.25,
            "finish_reason": "stop" if q.id != "q3" else "length",
        }
        for name, q in exam.questions
    ]
    documents = [{"id": "d0", "tokens": 10, "nll": nll[0]}, {"id": "d1", "tokens": 30, "nll": nll[1]}]
    return Score(rows, {"documents": documents, "fingerprint": -1.5, "seconds": 2.0, "dtype": "float32"})


def arm(name: str) -> TrainedArm:
    return TrainedArm(
        name, f"/{name}", f"w-{name}", None, False, {"hf": name, "stage": None, "steps": 7, "tokens": 99, "seconds": 1.5, "plan_hash": "p"}
    )


def report(
    names: list[str], scored: dict[str, set[str]], overlap: OverlapReport | None = None, compare_to: str = "standard"
) -> dict[str, Any]:
    data, config = corpus(overlap), ExamConfig(resamples=500, compare_to=compare_to)
    exam = build_exam(data, config, seed=0)
    scores = {name: score(exam, right, (5.0, 30.0)) for name, right in scored.items()}
    return build_report("demo", 0, config, exam, data, [arm(n) for n in names], scores, {"mix": "no reply within 9 s"})


PIT, STANDARD = {"q0", "q1", "q2", "t0", "t1", "t2"}, {"q0", "t0"}


def test_values_by_hand() -> None:
    made = report(["standard", "pit"], {"standard": STANDARD, "pit": PIT})
    pit = made["arms"]["pit"]
    test = pit["sets"]["test"]
    assert (test["n"], test["documents"], test["ended"]) == (4, 2, 0.75)
    # documents d0: 2 of 2, d1: 1 of 2; a resample holds d0 twice (1.0), both (0.75) or d1 twice (0.5)
    assert test["em"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert test["f1"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert pit["sets"]["train"]["em"]["mean"] == 1
    assert "replay" not in pit["sets"]
    # 35 nats over 40 tokens, not the mean of 0.5 and 1.0
    assert pit["document_loss"] == {"mean": 0.875, "low": 0.5, "high": 1.0, "documents": 2, "tokens": 40}
    assert pit["perplexity"]["mean"] == pytest.approx(math.exp(0.875))
    # pit − standard: d0 one of two, d1 one of two: 0.5 in every resample
    assert made["differences"] == {
        "compare_to": "standard",
        "to": {"pit": {"mean": 0.5, "low": 0.5, "high": 0.5}},
        "best": "pit",
        "pairs": {
            "standard": {"pit": {"mean": -0.5, "low": -0.5, "high": -0.5}},
            "pit": {"standard": {"mean": 0.5, "low": 0.5, "high": 0.5}},
        },
    }
    assert made["baselines"]["commonest_train_answer"] == {"answer": "Rome", "em": 0.25}
    assert made["baselines"]["commonest_exam_answer"] == {"answer": "Oslo", "em": 0.5}
    assert made["overlap"]["answer_in_document"] == 3  # Bern stands nowhere
    assert (pit["steps"], pit["tokens"], pit["seconds"], pit["plan_hash"]) == (7, 99, 1.5, "p")
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    json.dumps(made, allow_nan=False)


def test_a_missing_arm_is_missing_and_not_zero() -> None:
    made = report(["standard", "mix", "pit"], {"standard": STANDARD, "pit": PIT})
    mix = made["arms"]["mix"]
    assert (mix["status"], mix["reason"]) == ("missing", "no reply within 9 s")
    assert "sets" not in mix
    assert "mix" not in made["differences"]["to"] and "mix" not in made["differences"]["pairs"]
    _, rows = table_cells(made)
    assert [row[1] for row in rows] == ["25.0 (0–50)", "missing", "75.0 (50–100)"]
    assert "No score for `mix`." in summary(made)
    assert "`mix` is missing: no reply within 9 s" in markdown(made)


def test_the_twin_a_scored_zero_is_zero() -> None:
    made = report(["standard", "mix"], {"standard": STANDARD, "mix": set()})
    assert made["arms"]["mix"]["status"] == "scored"
    assert made["arms"]["mix"]["sets"]["test"]["em"]["mean"] == 0
    assert made["differences"]["to"]["mix"]["mean"] == -0.25


def test_nothing_scored() -> None:
    made = report(["standard", "pit"], {})
    assert summary(made) == "No arm has a score yet. No score for `standard`, `pit`."
    assert "not examined yet" in markdown(made)


def test_summary_in_plain_words() -> None:
    made = report(["standard", "pit"], {"standard": STANDARD, "pit": PIT})
    assert summary(made) == (
        "`pit` answers 75.0 % of the 4 exam questions exactly; `standard` 25.0 %: 50.0 points more (95 % interval 50.0 to 50.0)."
    )
    tie = report(["standard", "pit"], {"standard": {"q0"}, "pit": {"q2", "q3"}})
    assert "the exam cannot tell them apart" in summary(tie)
    best_is_reference = report(["base", "standard", "pit"], {"base": set(), "standard": PIT, "pit": STANDARD})
    assert "75.0 % of the 4 exam questions exactly; the next best, `pit`, 25.0 %: 50.0 points more" in summary(best_is_reference)


def test_no_arm_by_the_name_of_compare_to() -> None:
    made = report(["mix", "pit"], {"mix": STANDARD, "pit": PIT}, compare_to="standard")
    assert made["differences"]["compare_to"] is None
    assert made["differences"]["pairs"]["pit"]["mix"]["mean"] == 0.5
    assert "exactly; the next best, `mix`, 25.0 %: 50.0 points more" in summary(made)
    assert summary(report(["pit"], {"pit": PIT})) == "`pit` answers 75.0 % of the 4 exam questions exactly."
    assert not any("EM −" in head for head in table_cells(made)[0])


def test_a_diverged_model_has_no_loss() -> None:
    data, config = corpus(), ExamConfig(resamples=100)
    exam = build_exam(data, config, seed=0)
    made = build_report("demo", 0, config, exam, data, [arm("pit")], {"pit": score(exam, set(), (None, 30.0))}, {})
    assert made["arms"]["pit"]["document_loss"] is None
    assert made["arms"]["pit"]["perplexity"] is None
    json.dumps(made, allow_nan=False)


def test_overlap_is_counted_and_left_out_beside() -> None:
    leaked = OverlapReport("allow", question_ids=("q0", "elsewhere"))
    made = report(["pit"], {"pit": PIT}, leaked)
    assert made["overlap"]["also_in_training"] == 1
    assert made["arms"]["pit"]["test_without_overlap"]["em"]["mean"] == pytest.approx(2 / 3)
    assert "1 of 4 exam questions also stand in training. Test EM without them: `pit` 66.7 %." in markdown(made)
    dropped = report(["pit"], {"pit": PIT}, OverlapReport("drop_from_train", question_ids=("q0",)))
    assert dropped["overlap"]["also_in_training"] == 0
    assert dropped["arms"]["pit"]["test_without_overlap"] is None


def test_markdown_survives_what_models_say() -> None:
    text = markdown(report(["standard", "pit"], {"standard": set(), "pit": PIT}))
    assert "no idea \\| at \\*all\\*" in text
    assert "✓ `pit`" in text and "✗ `standard`" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[:4]}) == 1


EXPERIMENT = """
name: demo
runs: {runs}
data: {{bios: {{replay_people: 4, train_people: 4, test_people: 4}}}}
model: {{tiny: {{}}}}
arms: {{standard: {{preset: standard}}, pit: {{preset: pit}}}}
exam: {{resamples: 100}}
"""


def test_command_with_nothing_new_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arms are scored: no Ray, no engine; a table on stdout, the files written. And --json prints report.json."""
    from data.load import load_corpus
    from evaluation import __main__ as command
    from evaluation.score_files import read_arms, score_stem, write_score
    from experiment import load_experiment

    path, folder = tmp_path / "x.yaml", tmp_path / "demo"
    path.write_text(EXPERIMENT.format(runs=tmp_path))
    folder.mkdir()
    arms = {name: {"hf": f"someone/{name}", "stage": None, "steps": 3} for name in ("standard", "pit")}
    experiment = load_experiment(path)
    records = load_corpus(experiment.data, 0)
    (folder / "arms.json").write_text(json.dumps({"experiment": "demo", "records_sha256": records.fingerprint(), "arms": arms}))
    exam = build_exam(records, experiment.exam, 0, experiment.exam.modes)
    for trained in read_arms(folder, records.fingerprint()):
        made = score(exam, {exam.questions[0][1].id} if trained.name == "pit" else set(), (1.0, 1.0))
        rows = [{**row, "prompt": "", "gold": [], "answer_tokens": 1} for row in made.rows]
        write_score(score_stem(folder, trained, exam.fingerprint()), trained.name, 0, rows, made.about)

    def never(*_: Any) -> Any:
        raise AssertionError("nothing is new")

    monkeypatch.setattr(command, "_examine", never)
    assert command.main([str(path)]) == 0
    assert "pit" in capsys.readouterr().out
    assert "## How to read it" in (folder / "report.md").read_text()
    assert command.main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "report.json").read_text())
    with pytest.raises(AssertionError, match="nothing is new"):  # the twin: another exam is new
        command.main([str(path), "exam.answer_tokens=9"])


def test_who_is_examined_in_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The base in its modes, arms in theirs, stages within arms closed and only when asked for; gone weights are named, not asked."""
    from data.load import load_corpus
    from evaluation import __main__ as command
    from experiment import load_experiment

    path, folder = tmp_path / "x.yaml", tmp_path / "demo"
    path.write_text(EXPERIMENT.format(runs=tmp_path))
    arms: dict[str, Any] = {"base": {"hf": "someone/base", "stage": None, "stages": []}}
    for key in ("k0", "k1"):
        (folder / "stages" / key / "hf").mkdir(parents=True)
        (folder / "stages" / key / "manifest.json").write_text(json.dumps({"weights_sha256": key, "totals": {"steps": 3, "tokens": 9}}))
    arms["pit"] = {"hf": "stages/k1/hf", "stage": "k1", "stages": ["k0", "k1"], "steps": 6}
    arms["lost"] = {"hf": "stages/k9/hf", "stage": "k9", "stages": ["k0", "k9"], "steps": 6}
    records = load_corpus(load_experiment(path).data, 0)
    (folder / "arms.json").write_text(json.dumps({"experiment": "demo", "records_sha256": records.fingerprint(), "arms": arms}))
    asked: list[dict[str, Any]] = []

    def note(todo: Any, *_: Any) -> dict[str, str]:
        asked.append({arm.name: exam.modes for arm, exam in todo})
        return {}

    monkeypatch.setattr(command, "_examine", note)
    for override in ("last", "all"):
        with pytest.raises(RunError, match="arms could not be examined: lost: its weights are gone"):
            command.main([str(path), f"exam.stages={override}"])
    everyone = {"base": ("closed", "few_shot", "retrieval", "open"), "pit": ("closed", "retrieval")}
    assert asked == [everyone, {**everyone, "stage-k0": ("closed",)}]
    report = json.loads((folder / "report.json").read_text())
    assert [(s["stage"], s["steps"]) for s in report["learning"]["pit"]] == [("k0", 3), ("k1", 6)]
    assert report["bounds"] is None and report["retrieval"] is None  # nobody has a score


def test_texts_of_models_and_data_are_no_markup() -> None:
    made = report(["standard", "mix"], {"standard": STANDARD})
    made["baselines"]["commonest_train_answer"]["answer"] = "<script>x</script> [a](http://b)"
    made["arms"]["mix"]["reason"] = "| broken | <b>\nnext line"
    text = markdown(made)
    assert r"\<script\>x\</script\> \[a\](http://b)" in text and "<script>" not in text
    assert "`mix` is missing: \\| broken \\| \\<b\\> next line" in text


def test_one_document_says_nothing_about_others() -> None:
    made = report(["standard", "pit"], {"standard": STANDARD, "pit": PIT})
    assert "of one document" not in summary(made)
    for arm in made["arms"].values():
        arm["sets"]["test"]["documents"] = 1
    assert "the questions are of one document, so nothing is said about others" in summary(made) and "points more" not in summary(made)


def test_the_headline_says_what_other_words_do() -> None:
    made = report(["standard", "pit"], {"standard": STANDARD, "pit": PIT})
    assert "other words" not in table_cells(made)[0] and "wording" not in summary(made) and "In other words" not in markdown(made)
    one = {"mean": 0.2, "low": 0.1, "high": 0.3}
    found = {
        "questions": 4,
        "own": one,
        "by_wording": [{"n": 4, **one}] * 2,
        "worst": {"number": 2, "n": 4, **one},
        "all": one,
        "minus_own": one,
    }
    made["wordings"] = {"standard": found, "pit": found}
    heads, cells = table_cells(made)
    assert [row[heads.index("other words")] for row in cells] == ["20.0", "20.0"]
    assert "Asked in 2 other wordings it answers 20.0 % in the worst, and 20.0 % in every one." in summary(made)
    assert "## In other words" in markdown(made, [markdown_blocks(made)]) and "In other words" in page(made | {"folder": "runs/x"})
