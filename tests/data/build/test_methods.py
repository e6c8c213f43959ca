"""`data build --method`, against a service that answers by rule: what is asked, what is left, what it costs, and what no writer is shown."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from console import RunError, UserError
from data.__main__ import main
from data.build.asking.exchange import Answers
from data.build.asking.methods import chosen, known_methods, load_method
from data.build.making import rewrites
from data.build.making.figures import Exam, Figures, runs_of
from data.build.making.questions import collect
from data.build.parquet_file import read_rows
from data.ground.words import holds, normalise
from data.load import load_corpus
from experiment import load_experiment
from tests.conftest import ROOT
from tests.data.build.service import BELOW, Service
from tests.data.build.test_command import WORDS, prose
from tests.helpers.refusals import refusal

SPA = ["key_concepts", "mind_map", "implications", "critical_questions", "case_study", "discussion", "teacher"]
FILES = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    root.mkdir()
    for n in range(FILES):
        (root / f"page{n}.md").write_text(f"# Subject {WORDS[n]} {WORDS[n + 50]}\n\n{prose(n)}\n")
    return root


def build(folder: Path, out: Path, service: Service, *more: str) -> None:
    options = ["--endpoint", service.url, "--model", "by-rule", "--no-ray", "--validation-share", "0"]
    main(["build", str(folder), "--out", str(out), *options, *more])


def rows(out: Path, what: str) -> list[dict[str, Any]]:
    return [row for split in ("train", "test") for row in read_rows(out / f"{split}_{what}.parquet")]


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())  # type: ignore[no-any-return]


def shown_to_writers(service: Service) -> list[str]:
    return [body["messages"][-1]["content"] for body in service.bodies]


def steered(service: Service, out: Path) -> set[str]:
    """Exam questions that stand in something that a model was asked."""
    asked = [normalise(row["question"]) for row in read_rows(out / "test_questions.parquet")]
    assert asked
    return {question for prompt in map(normalise, shown_to_writers(service)) for question in asked if holds(prompt, question)}


def test_seven_forms_in_equal_shares(folder: Path, tmp_path: Path, service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "built"
    build(folder, out, service, "--method", "spa", "--price", "1", "2")
    assert "spa: 56 requests to make" in capfd.readouterr().err, "told by method, before anything is asked"
    written, about = rows(out, "rewrites"), manifest(out)
    assert Counter(row["way"] for row in written) == dict.fromkeys(SPA, FILES), "each form as often as every other"
    assert list(about["methods"]) == [f"spa/{way}" for way in SPA] and list(about["figures"]) == ["documents", *about["methods"]]
    documents = {row["id"]: row for row in rows(out, "documents")}
    for row in written:
        assert row["of"] in documents and row["method"] == "spa" and row["model"] == "by-rule"
        assert row["prompts"] == about["methods"][f"spa/{row['way']}"]["prompt"] and Answers(out / "answers").has(row["reply"])
        assert (row["quality"], documents[row["of"]]["quality"]) == (0.0, 1.0), "best_share can leave them out"
    for name, figures in about["figures"].items():
        assert figures["compression"] > 1 and 0 < figures["distinct_4"] <= 1 and figures["distinct_2"] <= figures["distinct_4"], name
        assert name == "documents" or (figures["texts"], figures["read"], figures["written"]) == (FILES, 100 * FILES, 50 * FILES)
    corpus = load_corpus(load_experiment(out / "augmented.yaml").data, 0)
    assert sum(len(part.all_documents()) for part in corpus.parts.values()) == FILES * 8
    paid, files = len(service.paid), {path.name: path.read_bytes() for path in out.glob("*.*") if path.suffix != ".log"}
    build(folder, out, service, "--method", "spa", "--price", "1", "2")
    assert len(service.paid) == paid and files == {path.name: path.read_bytes() for path in out.glob("*.*") if path.suffix != ".log"}
    build(folder, out, service, "--method", "spa", "--texts", "2")
    assert len(service.paid) == paid + 7 * FILES, "what is there is not asked for again"
    main(["show", str(out)])
    assert "What was written" in capfd.readouterr().out


def test_pairs_and_triples_of_entities(folder: Path, tmp_path: Path, service: Service) -> None:
    out = tmp_path / "built"
    build(folder, out, service, "--method", "entigraph")
    written, account = rows(out, "rewrites"), manifest(out)["account"]
    by_document: dict[str, Counter[str]] = {}
    for row in written:
        names = row["about"].split("; ")
        assert len({name.casefold() for name in names}) == {"pairs": 2, "triples": 3}[row["way"]] and "Atlantis" not in names
        by_document.setdefault(row["of"], Counter())[row["way"]] += 1
    sets = [(row["of"], frozenset(row["about"].split("; "))) for row in written]
    assert len(set(sets)) == len(sets), "none twice, in no order"
    assert all(found == {"pairs": 10, "triples": 5} for found in by_document.values())
    empty = account["lists"]["left_out"].get("names nothing that can be used", 0)
    single = account["rewrites"]["left_out"].get("too few names for pairs", 0)
    assert empty and len(by_document) == FILES - empty - single, "a document that names nothing is left, and said"
    lists = [
        body["messages"][-1]["content"]
        for body in service.bodies
        if "list" in body["response_format"]["json_schema"]["schema"]["properties"]
    ]
    assert account["lists"]["came"] == FILES and len(lists) == FILES + empty, "an empty list is asked for once more"
    reasons = account["names"]["left_out"]
    assert reasons["listed twice"] >= reasons["does not stand in the document"] == len(by_document)


def test_sets_of_names() -> None:
    names = list("abcdef")
    for over, size in (("each", 1), ("pairs", 2), ("triples", 3)):
        found = chosen(names, over, 0, "d")
        assert found == chosen(names, over, 0, "d") and found != chosen(names, over, 1, "d") and found != chosen(names, over, 0, "e")
        assert {frozenset(one) for one in found} == {frozenset(one) for one in combinations(names, size)} and len(found) == len(set(found))
    assert chosen([], "pairs", 0, "d") == chosen(["a"], "pairs", 0, "d") == []


def test_all_methods_and_no_exam_question_in_a_prompt(
    folder: Path, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, every = tmp_path / "built", [word for name in known_methods() for word in ("--method", name)]
    assert known_methods() == ["active", "entigraph", "qa", "rewrites", "spa"]
    build(folder, out, service, *every)
    assert {row["method"] for row in rows(out, "rewrites")} == {*known_methods()}
    assert Counter(row["way"] for row in rows(out, "rewrites"))["study"] == 6 * FILES
    asked = list(read_rows(out / "train_asked.parquet"))
    documents = {row["id"] for row in read_rows(out / "train_documents.parquet")}
    assert asked and all(row["doc_id"] in documents and row["method"] == "qa" and row["reply"] for row in asked)
    assert not (out / "test_asked.parquet").exists(), "of the exam's documents no question is trained"
    as_text = [row["text"] for row in read_rows(out / "test_rewrites.parquet") if row["method"] == "qa"]
    exam = Exam(row["question"] for row in read_rows(out / "test_questions.parquet"))
    assert as_text and not any(exam.held(row["text"]) for row in rows(out, "rewrites"))
    assert manifest(out)["account"]["questions"]["left_out"]["asked twice"] > FILES  # what the service asks of qa too is the exam's
    corpus = load_corpus(load_experiment(out / "augmented.yaml").data, 0)
    assert {row["question"] for row in asked} <= {question.question for question in corpus.part("train").questions}

    assert not steered(service, out)
    exam_rows = list(read_rows(out / "test_questions.parquet"))  # the twin: one that writes around the exam's questions is found out
    monkeypatch.setattr(rewrites, "split_of", lambda document, splits: "train")
    monkeypatch.setattr("data.build.command.collect", _with_exam_as_train(exam_rows))
    build(folder, tmp_path / "leaky", service, "--method", "rewrites")
    assert steered(service, out)


def _with_exam_as_train(exam_rows: list[dict[str, Any]]) -> Any:
    def collected(*given: Any) -> Any:
        found = collect(*given)
        found.rows["train"] += exam_rows
        return found

    return collected


def test_a_prompt_that_holds_an_exam_question_is_refused(folder: Path, tmp_path: Path, service: Service) -> None:
    build(folder, tmp_path / "built", service)
    question = next(read_rows(tmp_path / "built" / "test_questions.parquet"))["question"]
    trained = next(read_rows(tmp_path / "built" / "train_questions.parquet"))["question"]
    paid = len(service.paid)
    for name, said, fails in (("leaks", question.upper(), True), ("fine", trained, False)):
        (tmp_path / f"{name}.yaml").write_text(
            f"steps: {{essay: {{form: text, system: s, user: '{BELOW}{{topic}}. Say {said} Document:\n\n  {{text}}'}}}}\n"
        )
        if fails:
            with pytest.raises(UserError, match=r"--method leaks: the prompt of essay holds a question of the exam \('.*'\); take it out"):
                build(folder, tmp_path / "built", service, "--method", str(tmp_path / "leaks.yaml"))
            assert len(service.paid) == paid, "nothing was asked for it"
        else:
            build(folder, tmp_path / "built", service, "--method", str(tmp_path / "fine.yaml"))
    assert {row["method"] for row in rows(tmp_path / "built", "rewrites")} == {"fine"}


def test_a_budget_is_refused_before_anything_is_asked(folder: Path, tmp_path: Path, service: Service) -> None:
    out, command = tmp_path / "built", ["--method", "qa", "--budget"]
    for more in ([], ["--dry-run"]):
        with pytest.raises(UserError, match=r"--budget 5000: about [\d,]+ tokens are needed; give more, or ask for less"):
            build(folder, out, service, *command, "5000", *more)
        assert not service.bodies
    build(folder, out, service, *command, "1000000")
    spent = Answers(out / "answers").tokens()
    assert spent == 150 * len(service.paid)
    build(folder, out, service, *command, str(spent))  # nothing is left to ask: no budget is too small
    with pytest.raises(UserError, match=rf"tokens are needed; {spent:,} are spent already"):
        build(folder, out, service, "--method", "spa", "--budget", str(spent + 500))


def test_a_build_that_is_done_is_within_its_budget(folder: Path, tmp_path: Path, service: Service) -> None:
    """What follows from questions is guessed before there are any: the same command again was refused, and the finished build without its manifest."""
    out, command = tmp_path / "built", ["--wordings", "2", "--unchecked", "--budget"]
    build(folder, out, service, *command, "1000000")
    spent, number = Answers(out / "answers").tokens(), len(service.paid)
    build(folder, out, service, *command, str(spent))
    assert len(service.paid) == number and (out / "manifest.json").exists()
    with pytest.raises(UserError, match="tokens are needed"):
        build(folder, out, service, "--method", "spa", "--budget", str(spent + 500))
    assert (out / "manifest.json").exists(), "refused before anything is asked"


def test_a_single_request_that_is_declined_ends_no_build(folder: Path, tmp_path: Path, service: Service) -> None:
    """It is all that is left to ask the second time: "every request was declined", for ever."""
    bodies: list[dict[str, Any]] = []
    service.declines = lambda body: bodies.append(body) or ("content policy" if body["messages"] == bodies[0]["messages"] else None)  # type: ignore[func-returns-value]
    for _ in range(2):
        build(folder, tmp_path / "built", service, "--parallel", "1")
        assert manifest(tmp_path / "built")["account"]["answers"]["left_out"] == {"the model declined": 1}


def test_a_budget_ends_a_build_that_costs_more_than_was_thought(folder: Path, tmp_path: Path, service: Service) -> None:
    """The service counts 1,050 tokens a request, more than was thought; what is paid for is kept."""
    out, command = tmp_path / "built", ["--method", "qa", "--parallel", "1", "--budget"]
    service.usage = (1000, 50)
    said = refusal(lambda: build(folder, out, service, *command, "1"))
    thought = int(re.search(r"about ([\d,]+) tokens", said)[1].replace(",", ""))  # type: ignore[index]
    with pytest.raises(RunError, match=r"--budget: spent, and \d+ requests are not made; what has been answered is kept"):
        build(folder, out, service, *command, str(thought))
    assert thought <= Answers(out / "answers").tokens() == 1050 * len(service.paid) < thought + 1050 * 4
    build(folder, out, service, *command, "100000")
    assert len(service.paid) == len(set(service.paid)), "nothing was paid twice"


def test_stopped_between_lists_and_texts_it_goes_on(folder: Path, tmp_path: Path, service: Service) -> None:
    out = tmp_path / "built"
    for after in (FILES + 3, 2 * FILES + 8):  # among the lists, and among the texts that follow from them
        service.fail_after = after
        with pytest.raises(RunError, match="401"):
            build(folder, out, service, "--method", "active", "--parallel", "2")
        assert not (out / "manifest.json").exists()
    service.fail_after = None
    build(folder, out, service, "--method", "active", "--parallel", "2")
    assert len(service.paid) == len(set(service.paid)) == FILES * (1 + 1 + 6), "questions, strategies, six texts"


@pytest.mark.slow
def test_killed_among_lists_and_among_texts_it_goes_on(folder: Path, tmp_path: Path, service: Service) -> None:
    """SIGKILL; paid twice is at most what was on its way."""
    out = tmp_path / "built"
    options = [
        "--endpoint",
        service.url,
        "--model",
        "by-rule",
        "--no-ray",
        "--validation-share",
        "0",
        "--method",
        "active",
        "--parallel",
        "2",
    ]
    service.pause_s = 0.05
    for paid in (FILES + 3, 2 * FILES + 8):
        command = [sys.executable, "-m", "data", "build", str(folder), "--out", str(out), *options]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(service.paid) < paid and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait(timeout=30) < 0 and not (out / "manifest.json").exists(), "it ended before it was killed"
    main(["build", str(folder), "--out", str(out), *options])
    assert len(set(service.paid)) == FILES * (1 + 1 + 6) <= len(service.paid) <= FILES * (1 + 1 + 6) + 2 * 2


def test_replies_that_are_no_good(folder: Path, tmp_path: Path, service: Service) -> None:
    """Lists and texts that are no JSON are asked for once more with another seed; what is no good then is left, and said."""
    out, seen = tmp_path / "built", Counter[str]()

    def broken(content: str) -> str:
        kind = "list" if content.startswith('{"list"') else "text" if content.startswith('{"text"') else ""
        seen[kind] += 1
        if kind == "text" and seen[kind] % 8 == 0:
            return json.dumps({"text": json.loads(content)["text"].partition(":")[0]})
        return "Sure! Here it is: {" if kind == "list" or (kind == "text" and seen[kind] % 2) else content

    service.wording = broken
    build(folder, out, service, "--method", "entigraph", "--method", "spa", "--parallel", "1")
    account = manifest(out)["account"]
    assert account["lists"] == {"came": FILES, "used": 0, "left_out": {"no usable reply": FILES}} and "names" not in account
    assert seen["list"] == 2 * FILES and account["rewrites"]["came"] == 7 * FILES
    assert set(account["rewrites"]["left_out"]) <= {"no usable reply", "too short to say anything"}
    assert account["rewrites"]["left_out"]["too short to say anything"] >= 7
    assert {row["method"] for row in rows(out, "rewrites")} == {"spa"}
    tokens = sum(figures["read"] for figures in manifest(out)["figures"].values())
    assert tokens == 100 * (len(service.paid) - FILES), "what bad replies cost is in the figures"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("steps: {a: {form: text, system: s, user: x}}", "steps.a: user: {text} is missing"),
        ("steps: {a: {form: same, system: s, user: '{text}'}}", "steps.a: form: same: a step writes text, open (questions) or list"),
        ("steps: {a: {form: list, system: s, user: '{text}'}}", "steps: lists alone leave nothing to train"),
        (
            "steps: {a: {form: text, over: pairs, of: b, system: s, user: '{text} {names}'}}",
            "of: b: over pairs needs an earlier step of form list",
        ),
        ("steps: {a: {form: text, over: each, of: b, system: s, user: '{text}'}}", "steps.a: user: {names} is missing"),
        ("steps: {a: {form: text, over: questions, system: s, user: '{text}'}}", "steps.a: user: {question} is missing"),
        ("steps: {a: {form: text, of: b, system: s, user: '{text}'}}", "steps.a: of: is for each, pairs, triples"),
        ("steps: {a: {form: text, texts: 0, system: s, user: '{text}'}}", "steps.a.texts: input should be greater than or equal to 1"),
        ("steps: {}", "steps: dictionary should have at least 1 item"),
        ("steps: [", "not YAML"),
    ],
)
def test_methods_that_cannot_be(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    said = refusal(lambda: load_method(str(tmp_path / "mine.yaml")))
    assert why in said and said.startswith(str(tmp_path))


def test_options_that_cannot_be(folder: Path, tmp_path: Path, service: Service) -> None:
    (tmp_path / "spa.yaml").write_text("steps: {a: {form: text, system: s, user: '{text}'}}")
    for more, why in (
        (["--method", "sap"], "--method sap: No such file or directory; give a file or one of active, entigraph, qa, rewrites, spa"),
        (["--method", "rewrites", "--paraphrases", "1"], "--method rewrites sets both; give either"),
        (["--method", str(tmp_path / "spa.yaml")], "another method is called spa; rename the file"),
    ):
        with pytest.raises(UserError, match=re.escape(why)):
            build(folder, tmp_path / "built", service, *more)
        assert not (tmp_path / "built").exists() and not service.bodies


def test_figures_by_hand() -> None:
    """Twelve different words, then the same again: half of the runs are new the second time, less those across; twins say less."""
    text = "one two three four five six seven eight nine ten eleven twelve"
    exam = Exam(["Three four five six seven, who?", "Who?", "seven eight nine ten eleven"])
    once, twice = Figures(exam), Figures(exam)
    for figures, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            figures.add(text, runs_of(text), runs_of("zero one two three four five"))
    assert once.as_dict()["distinct_2"] == once.as_dict()["distinct_4"] == 1.0
    assert twice.as_dict()["distinct_2"] == twice.as_dict()["distinct_4"] == 0.5
    assert once.as_dict()["copied"] == twice.as_dict()["copied"] == 0.125, "one of eight runs of five words"
    assert once.as_dict()["exam"] == pytest.approx(2 / 3, abs=1e-4), "of the runs 3–7, 4–who and 7–11 two"
    assert twice.as_dict()["compression"] > once.as_dict()["compression"]
    assert exam.held(f"And SEVEN, eight nine ten eleven! {text}") == ["seven eight nine ten eleven"] * 2
    assert exam.held("Who? Three four five six") == []
