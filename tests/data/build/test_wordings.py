"""Questions in other words, written by a service: what is kept, what is left out and why, and what a second run costs."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from console import UserError
from data.__main__ import main
from data.build.asking.exchange import Answers, Request
from data.build.making.account import Account
from data.build.making.near import Benchmarks
from data.build.making.wordings import Original, Writers, fault, make_wordings
from data.load import load_corpus
from experiment import load_experiment
from tests.data.build.service import Service, reworded

FILMS = [("Opening", "When did Opening Night of Ada 2 begin in Rome?", "in May"), ("Sky", "Who directed The Wide Sky?", "Bo Berg")]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Two train questions and two of the exam, one of which is worded as a wording of the first would be."""
    for split, rows in (
        ("train", FILMS),
        ("test", [("Cy", "Who was Cy Young?", "a cook"), ("Dee", "Tell me: Who was Cy Young?", "a king")]),
    ):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for _, q, a in rows))
    file = tmp_path / "x.yaml"
    file.write_text(
        f"name: x\nruns: {tmp_path}/runs\nmodel: {{tiny: {{}}}}\narms: {{pit: {{preset: cpt}}}}\ndata:\n  root: {tmp_path}\n  sources:\n"
        + "".join(f"    - {{path: {split}.jsonl, split: {split}, holds: questions}}\n" for split in ("train", "test"))
    )
    return file


def test_from_an_experiment_to_its_exam(experiment: Path, service: Service) -> None:
    out = experiment.parent / "words"
    command = [
        "wordings",
        str(experiment),
        "--out",
        str(out),
        "--endpoint",
        service.url,
        "--model",
        "by-rule",
        "--no-ray",
        "--wordings",
        "2",
    ]
    main([*command, "--train-wordings", "1"])
    rows = [json.loads(line) for line in (out / "wordings.jsonl").read_text().splitlines()]
    assert [(row["split"], len(row["wordings"])) for row in rows] == [("test", 1), ("test", 2), ("train", 1), ("train", 1)]
    reasons = [json.loads(line)["reason"] for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert reasons.count("the same words") == 4 and reasons.count("holds its own answer") == 4
    assert reasons.count("does not ask the same, says the model") == 4
    assert reasons.count("asks another question of the set, or is there already") == 1
    assert reasons.count("leaves out a name or a number") == 4
    paid = len(service.paid)
    assert paid == 4 + sum(len(reworded("Question: x y z\nAnswer: a")) - 3 for _ in rows) - 1, (
        "a request to write, one to check each that no rule left out"
    )
    main([*command, "--train-wordings", "1"])
    assert len(service.paid) == paid, "nothing is asked twice"
    corpus_of = load_experiment(experiment, [f"data.wordings={out}/wordings.jsonl", "exam.looks=[wordings]"])
    assert corpus_of.exam.looks == ["wordings"]


def test_bad_words_of_the_command(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no questions to reword; --wordings is of the exam's"):
        main(["wordings", str(experiment), "--out", str(tmp_path / "o"), "--wordings", "0"])
    with pytest.raises(UserError, match="leave out --unchecked"):
        main(["wordings", str(experiment), "--out", str(tmp_path / "o"), "--unchecked", "--checker", "x"])
    assert not (tmp_path / "o").exists()


ASKED = Original("q", "test", "When did Opening Night of Ada 2 begin in Rome?", "in May", None, 2)


@pytest.mark.parametrize(
    ("wording", "reason"),
    [
        ("In Rome, when did Opening Night of Ada 2 begin?", None),
        ("Opening Night of Ada 2: say when it began.", None),  # most of the names
        ("when did opening night of ada 2 begin in rome", "the same words"),
        ("When did Opening Night of Ada begin in Rome?", "leaves out a name or a number"),
        ("When did part 2 of it begin?", "leaves out a name or a number"),
        ("Did Opening Night of Ada 2 begin in May in Rome?", "holds its own answer"),
        ("According to the text, when did Opening Night of Ada 2 begin?", "speaks of its text instead of its subject"),
        ("Who owns it", "asks another question of the set, or is there already"),
        (" ", "empty or too long"),
        ("When did Opening Night of Ada 2 begin? " * 9, "empty or too long"),
    ],
)
def test_rules_for_a_wording(wording: str, reason: str | None) -> None:
    assert fault(ASKED, wording, {"who owns it"}) == reason


def test_rules_that_know_the_document_and_the_benchmarks() -> None:
    titled = Original("q", "test", "Who directed The Wide Sky?", "Bo", "The Wide Sky", 2)
    assert fault(titled, "Who made it?", set()) == "does not name its subject"
    assert fault(titled, "The Wide Sky was directed by whom?", set()) is None
    assert fault(titled, "The Wide Sky was directed by whom?", set(), Benchmarks(["The Wide Sky was directed by whom? Bo"])) is not None


class Replies:
    """Writes what it is told to; of a reply that is no good there is another at the second try."""

    def __init__(self, folder: Path, *texts: str) -> None:
        self.answers, self.texts, self.asked = Answers(folder), list(texts), 0

    def __call__(self, requests: Iterable[Request], who: str, what: str) -> dict[str, str]:
        for request in list(requests):
            if not self.answers.has(request.key):
                self.asked += 1
                text = self.texts.pop(0) if who == "write" else "Yes, they do."
                self.answers.put(request.key, {"text": text, "finish": "stop", "prompt_tokens": 1, "answer_tokens": 1})
        return {}


def test_a_reply_that_is_no_good_is_asked_for_again(tmp_path: Path) -> None:
    good = 'Here you are:\n```json\n{"wordings": ["In Rome, when did Opening Night of Ada 2\\n begin?"]}\n```'
    replies = Replies(tmp_path, "I cannot", good)
    with Account(tmp_path) as account:
        writers = Writers("m", "m", 0, False)
        [row] = make_wordings([ASKED], [ASKED.question], writers, replies.answers, replies, 2, account)
        assert make_wordings([ASKED], [ASKED.question], writers, replies.answers, replies, 2, account) == [row]
    assert row["wordings"] == ["In Rome, when did Opening Night of Ada 2 begin?"] and replies.asked == 3
    with Account(tmp_path) as account:
        replies = Replies(tmp_path / "b", "no", "no")
        assert make_wordings([ASKED], [ASKED.question], writers, replies.answers, replies, 2, account) == []
        assert account.as_dict()["wordings"]["left_out"] == {"no usable reply": 1}


def test_a_build_asks_its_exam_in_other_words(tmp_path: Path, service: Service) -> None:
    (tmp_path / "folder").mkdir()
    for n in range(12):
        words = " ".join(
            f"{word}{n}"
            for word in [
                "the",
                "crane",
                "lifts",
                "forty",
                "tonnes",
                "at",
                "the",
                "quay",
                "and",
                "was",
                "built",
                "by",
                "sea",
                "wind",
                "dust",
                "and",
                "iron",
            ]
        )
        (tmp_path / "folder" / f"p{n}.md").write_text(f"# Crane Number{n}\n\n{words}.\n")
    out = tmp_path / "out"
    options = ["--endpoint", service.url, "--model", "by-rule", "--no-ray", "--validation-share", "0"]
    main(["build", str(tmp_path / "folder"), "--out", str(out), *options, "--wordings", "1", "--train-wordings", "2"])
    built = load_experiment(out / "experiment.yaml")
    assert built.exam.looks == ["wordings"]
    corpus = load_corpus(built.data, 0)
    assert corpus.part("test").questions and all(len(question.wordings) <= 1 for question in corpus.part("test").questions)
    assert any(question.wordings for question in corpus.part("test").questions)
    assert max(len(question.wordings) for question in corpus.part("train").questions) == 2
    counts = json.loads((out / "manifest.json").read_text())
    assert counts["account"]["wordings"]["used"] == sum(split.get("wordings", 0) for split in counts["splits"].values()) > 0
    assert "wordings.jsonl" in counts["files"]
    main(["build", str(tmp_path / "folder"), "--out", str(out), *options])
    assert load_experiment(out / "experiment.yaml").data.wordings is None, "without the option as before"
    assert not (out / "wordings.jsonl").exists()
