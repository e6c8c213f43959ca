"""python -m data build, as a user would: a folder of mixed files, an endpoint, Ray Data; then the plan of what it wrote."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from console import RunError, UserError
from data.__main__ import main
from data.build.parquet_file import read_rows
from data.load import load_corpus
from experiment import load_experiment
from tests.conftest import ROOT
from tests.data.build.service import KEY, Service
from tests.helpers.refusals import refusal

WORDS = [
    "".join(random.Random(n).choices("bcdfgklmnprst", k=1) + random.Random(n + 999).choices("aeiou", k=1)) + f"r{chr(97 + n % 26)}"
    for n in range(400)
]


def prose(seed: int, words: int = 60) -> str:
    chosen = random.Random(seed).choices(WORDS, k=words)
    return " ".join(chosen).capitalize() + "."


def make_folder(root: Path, files: int = 30) -> Path:
    """Markdown, text, code, HTML and a table; a duplicate, a near-duplicate, a binary, an ignored file."""
    root.mkdir()
    for n in range(files):
        (root / f"page{n}.md").write_text(f"# Subject {WORDS[n]} {WORDS[n + 50]}\n\n{prose(n)}\n")
    (root / "deep").mkdir()
    (root / "deep" / "note.txt").write_text(f"The note of Kepler\n\n{prose(500)}\n")
    (root / "deep" / "twin.txt").write_text((root / "page0.md").read_text())
    (root / "deep" / "near.txt").write_text((root / "page1.md").read_text() + " extra")
    (root / "code.py").write_text("def area(radius):\n    return 3.14159 * radius * radius  # of a circle of that radius\n" * 3)
    (root / "page.html").write_text(
        f"<html><head><title>Halley</title></head><body><p>{prose(600)}</p><script>alert(1)</script></body></html>"
    )
    rows = [{"title": f"Offer {WORDS[n]}", "description": prose(700 + n), "price": n} for n in range(6)]
    (root / "offers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    (root / "picture.bin").write_bytes(b"\0\1")
    (root / "data.txt").write_bytes(b"a\0b")
    (root / ".gitignore").write_text("secret*\n")
    (root / "secrets.md").write_text("# Secrets\n\nnothing to see")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder")


def build(folder: Path, out: Path, service: Service, *more: str) -> None:
    main(["build", str(folder), "--out", str(out), "--endpoint", service.url, "--model", "by-rule", *more])


def rows(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.usefixtures("ray_cluster")
def test_from_a_folder_to_a_plan(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.statuses = [429, 500, 299]  # too fast, broken, and a reply that is no JSON: asked again
    out = tmp_path / "built"
    build(folder, out, service)
    printed = capsys.readouterr()
    about = manifest(out)
    account = about["account"]
    for row in account.values():
        assert row["came"] == row["used"] + sum(row["left_out"].values())
    assert account["files"]["left_out"] == {
        "binary": 1, "hidden": 1, "named in .gitignore": 1, "no reader for .bin": 1,
    }  # fmt: skip
    assert account["rows"] == {"came": 7, "used": 6, "left_out": {"malformed JSON": 1}}
    left = account["documents"]["left_out"]
    assert left == {"the same text as another": 1, "nearly the same text as another": 1}
    assert account["answers"] == {"came": account["documents"]["used"], "used": account["documents"]["used"], "left_out": {}}
    assert set(account["questions"]["left_out"]) == {
        "says that the information is missing",
        "does not name its subject",
        "asked twice",
    }  # no question about one subject is taken for that about another

    splits = {
        split: (rows(out / f"{split}_documents.parquet"), rows(out / f"{split}_questions.parquet"))
        for split in ("train", "validation", "test")
    }
    pages = [{document["page"] for document in documents} for documents, _ in splits.values()]
    assert all(pages) and not (pages[0] & pages[1] or pages[0] & pages[2] or pages[1] & pages[2])
    for documents, questions in splits.values():
        assert questions and {question["doc_id"] for question in questions} <= {document["id"] for document in documents}
        assert all(question["model"] == "by-rule" and question["reply"] and question["prompts"] for question in questions)
    assert sum(len(questions) for _, questions in splits.values()) == account["questions"]["used"]
    assert KEY not in printed.err + printed.out + "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
    assert "exam questions: a score of 50 %" in printed.err

    for name in ("experiment", "search"):
        main(["plan", str(out / f"{name}.yaml"), "--json"])
        plan = json.loads(capsys.readouterr().out)
        assert set(plan["arms"]) >= {"cpt", "standard", "pit"}
        assert plan["contamination"]["kinds"]["questions"]["shared"] == 0


def test_nothing_is_paid_twice(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "built"
    service.fail_after = 11
    with pytest.raises(RunError, match="401"):
        build(folder, out, service, "--parallel", "2", "--no-ray")
    assert not (out / "manifest.json").exists()
    service.fail_after = None
    build(folder, out, service, "--parallel", "2", "--no-ray")
    assert len(service.paid) == len(set(service.paid)) == manifest(out)["account"]["documents"]["used"]
    capsys.readouterr()
    main(["show", str(out), "--json", "--samples", "2"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["changed"] == [] and len(shown["samples"]["train"]) == 2 and shown["account"] == manifest(out)["account"]
    main(["show", str(out)])
    assert "by-rule" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".jsonl", ".parquet", ".yaml", ".html", ".json")}
    build(folder, out, service, "--parallel", "2", "--no-ray")
    assert len(service.paid) == len(set(service.paid))
    assert before == {
        path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".jsonl", ".parquet", ".yaml", ".html", ".json")
    }


def test_multiple_choice_and_checks(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The service repeats what it was shown last: it knows no answer alone, and every one that stands at the document's end."""
    out = tmp_path / "built"
    build(folder, out, service, "--prompts", "perpetual", "--drop-known", "--drop-unanswerable", "--validation-share", "0", "--no-ray")
    assert not (out / "search.yaml").exists() and not (out / "validation_questions.parquet").exists()
    choices = rows(out / "test_choices.parquet")
    questions = {row["id"]: row for row in rows(out / "test_questions.parquet")}
    assert choices and all(
        row["choices"][row["answer_index"]] in questions[row["id"].removesuffix("#choice")]["answers"] for row in choices
    )
    assert all("choices" not in row for row in rows(out / "train_questions.parquet"))
    capsys.readouterr()
    main(["plan", str(out / "experiment.yaml"), "--json"])
    assert json.loads(capsys.readouterr().out)["arms"]["pit"]


def test_documents_in_other_words(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """The service turns a document's sentences round, or writes what it should not: each is used or counted."""
    out = tmp_path / "built"
    build(folder, out, service, "--paraphrases", "2", "--rewrites", "0.5", "--no-ray", "--near", "1")
    about = manifest(out)
    account = about["account"]["rewrites"]
    assert account["came"] == account["used"] + sum(account["left_out"].values())
    assert set(account["left_out"]) == {"much shorter than its document", "nearly the words of its document, or of another rewrite"}
    train = {row["id"]: row for row in rows(out / "train_documents.parquet")}
    questions = rows(out / "train_questions.parquet")
    written = rows(out / "train_rewrites.parquet")
    assert {row["way"] for row in written} == {"paraphrase", "rewrite"}
    assert all(row["of"] in train and row["reply"] and row["prompts"] and row["model"] == "by-rule" and row["seed"] >= 0 for row in written)
    around = [row for row in written if row["way"] == "rewrite"]
    assert 0.25 * len(questions) < len(around) < 0.75 * len(questions)  # a share by hash
    for split in ("validation", "test"):  # no exam question steers what is read
        assert {row["way"] for row in rows(out / f"{split}_rewrites.parquet")} == {"paraphrase"}
    assert sum(split["rewrites"] for split in about["splits"].values()) == account["used"]
    capsys.readouterr()
    main(["plan", str(out / "augmented.yaml"), "--json"])
    assert json.loads(capsys.readouterr().out)["contamination"]["kinds"]["questions"]["shared"] == 0
    augmented, plain = (load_corpus(load_experiment(out / f"{name}.yaml").data, 0) for name in ("augmented", "experiment"))
    for split, of in (("train", ("train", "validation")), ("test", ("test",))):
        more = sum(about["splits"][name]["rewrites"] for name in of)
        assert len(augmented.part(split).documents) == len(plain.part(split).documents) + more  # type: ignore[arg-type]
    paid = len(service.paid)
    build(folder, out, service, "--paraphrases", "2", "--rewrites", "0.5", "--no-ray", "--near", "1")
    assert len(service.paid) == paid
    build(folder, out, service, "--no-ray", "--near", "1")  # without, nothing of them stays
    assert not list(out.glob("*_rewrites.parquet")) and not (out / "augmented.yaml").exists()


def test_a_killed_build_goes_on(folder: Path, tmp_path: Path, service: Service) -> None:
    """SIGKILL while replies come in; the same command pays at most for what was on its way."""
    out, parallel = tmp_path / "built", 2
    command = [sys.executable, "-m", "data", "build", str(folder), "--out", str(out), "--endpoint", service.url, "--model", "by-rule"]
    command += ["--parallel", str(parallel), "--no-ray"]
    service.pause_s = 0.1
    for replies in (5, 15):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while len(service.paid) < replies and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            assert process.poll() is None, "it ended before it was killed"
        finally:
            process.kill()
            process.wait(timeout=30)
        assert not (out / "manifest.json").exists()
    service.pause_s = 0
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    documents = manifest(out)["account"]["documents"]["used"]
    assert len(set(service.paid)) == documents <= len(service.paid) <= documents + 2 * parallel
    assert not list((out / "answers").rglob("*.part.json"))


def test_the_student_checks(folder: Path, tmp_path: Path, service: Service) -> None:
    """Another model than the writer is asked what it knows; what the writer has said is not asked for again when the checker changes."""
    for checker in ("student", "other"):
        build(folder, tmp_path / "built", service, "--drop-unanswerable", "--checker", checker, "--no-ray")
        assert manifest(tmp_path / "built")["checker"] == checker
    asked = {model: sum(body["model"] == model for body in service.bodies) for model in ("by-rule", "student", "other")}
    assert asked["by-rule"] == manifest(tmp_path / "built")["account"]["answers"]["used"] and asked["student"] == asked["other"] > 0
    assert all(("response_format" in body) == (body["model"] == "by-rule") for body in service.bodies)


def test_dry_run_asks_nothing(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    build(folder, tmp_path / "built", service, "--dry-run", "--json", "--price", "1", "2")
    about = json.loads(capsys.readouterr().out)
    assert about["estimate"]["requests"] == about["account"]["documents"]["used"] == sum(about["splits"].values())
    assert about["estimate"]["prompt_tokens"] > 0 and not service.bodies and not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--endpoint", "ftp://x/v1", "--model", "m"], "expected http(s)://HOST"),
        (["--endpoint", "http://10.0.0.1/v1", "--model", "m"], "would send the key unencrypted"),
        (["--endpoint", "https://me:pw@h/v1", "--model", "m"], "holds a name, a password or a query"),
        (["--endpoint", "https://h/v1"], "say which of its models"),
        (["--prompts", "nope"], "give a file or one of perpetual, pit"),
        (["--checker", "m"], "is for --drop-known, --drop-unanswerable and --wordings"),
        (["--test-share", "0.6", "--validation-share", "0.5"], "the exam needs a share above 0"),
        (["--column", "words=body"], "expected FIELD=COLUMN"),
        (["--split", "date", "--dry-run"], "needs a date on every page"),
        (["--include", "*.nothing", "--dry-run"], "holds no document that can be used"),
        (["--benchmark", "x.txt"], "expected .jsonl, .ndjson, .json, .csv"),
    ],
)
def test_bad_arguments(folder: Path, tmp_path: Path, arguments: list[str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDYHALL_API_KEY", KEY)
    assert why in refusal(lambda: main(["build", str(folder), "--out", str(tmp_path / "built"), *arguments]))
    assert not (tmp_path / "built").exists()


def test_another_folder_is_not_written_into(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for out, why in ((tmp_path / "mine", "holds other files, e.g. thesis.tex"), (tmp_path, "holds the folder that is read")):
        with pytest.raises(UserError, match=why):
            main(["build", str(folder), "--out", str(out)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished build"):
        main(["show", str(tmp_path / "empty")])


def test_show_names_what_has_changed(folder: Path, tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "built"
    build(folder, out, service, "--no-ray")
    (out / "train_questions.parquet").write_bytes(b"")
    (out / "search.yaml").unlink()
    capsys.readouterr()
    main(["show", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["changed"] == ["search.yaml", "train_questions.parquet"]
