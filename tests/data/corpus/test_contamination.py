"""Runs of 13 words that exam and training share."""

from collections.abc import Iterator

import pytest

from data.config import Bios
from data.corpus.bios import make_bios
from data.corpus.contamination import contamination, run_hashes, shared_runs
from data.records import Corpus, Document, Part, Question

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]
RUN = " ".join(WORDS)


def corpus(trained: str, exam: str) -> Corpus:
    train = Part([Document("a", trained)], [Question("q", "Who?", ("Ann",), "a")])
    return Corpus({"train": train, "test": Part([Document("b", exam)], [Question("t", "Who else?", ("Bob",), "b")])})


@pytest.mark.parametrize(
    ("trained", "exam", "shared"),
    [
        (f"Before {RUN} after.", f"Other {RUN}, end.", 1),
        (f"Before {RUN} after.", "ONE two three, four! five six seven (eight) nine ten eleven twelve -- thirteen", 1),  # normalised
        (f"Before {' '.join(WORDS[:12])} after.", f"Other {RUN}.", 0),  # twelve are too few
        (f"Before {' '.join([*WORDS[:6], 'x', *WORDS[6:]])}", f"Other {RUN}.", 0),  # not in a row
        (f"Before {' '.join(reversed(WORDS))}", f"Other {RUN}.", 0),  # not in this order
    ],
)
def test_thirteen_words_in_a_row(trained: str, exam: str, shared: int) -> None:
    report = contamination(corpus(trained, exam))
    assert len(report.kinds["documents"].ids) == shared
    assert len(report.examples) == shared and all("train document a" in example for example in report.examples)


def test_short_texts_are_counted_and_never_found() -> None:
    report = contamination(corpus(RUN, "Bob."))
    counts = {kind: (shared.texts, shared.long_enough, len(shared.ids)) for kind, shared in report.kinds.items()}
    assert counts == {"documents": (1, 0, 0), "questions": (1, 0, 0), "answers": (1, 0, 0)}


def test_a_run_may_go_from_a_question_into_its_answer() -> None:
    train = Part([], [Question("q", " ".join(WORDS[:9]) + "?", (" ".join(WORDS[9:]),))])
    report = contamination(Corpus({"train": train, "test": Part([Document("b", RUN)])}))
    assert report.kinds["documents"].ids == ["b"] and "train question q" in report.examples[0]


def test_replay_counts_as_training_and_the_exams_documents_do_not() -> None:
    exam = Part([Document("b", RUN)], [Question("t", RUN + "?", ("Ann",), "b")])
    assert contamination(Corpus({"test": exam})).kinds["questions"].ids == []
    assert contamination(Corpus({"test": exam, "replay": Part([Document("r", RUN)])})).kinds["questions"].ids == ["t"]


def test_agrees_with_sets_of_runs_on_made_data() -> None:
    made = make_bios(Bios(replay_people=20, train_people=60, test_people=30, templates=1), 0)

    def runs(text: str) -> set[str]:
        words = text.lower().replace(".", "").split()
        return {" ".join(words[n : n + 9]) for n in range(len(words) - 8)}

    trained = set().union(*(runs(d.text) for split in ("train", "replay") for d in made.parts[split].documents))  # type: ignore[index]
    expected = [d.id for d in made.parts["test"].documents if runs(d.text) & trained]
    assert expected and contamination(made, num_words=9).kinds["documents"].ids == expected


def test_training_is_streamed() -> None:
    alive = 0

    def texts() -> Iterator[tuple[str, str]]:
        nonlocal alive
        for n in range(1000):
            alive += 1
            yield f"place {n}", f"number {n} {RUN}"

    report = shared_runs([("documents", "b", RUN)], texts())
    assert alive == 1000 and report.examples[0].startswith("documents b = place 0")
    assert len(run_hashes(RUN, 13)) == 1 and len(run_hashes(RUN, 12)) == 2
