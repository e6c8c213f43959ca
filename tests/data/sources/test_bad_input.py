"""Every kind of bad input through every reader, as a person meets it: `python -m data check` on an experiment.

One table: case × reader. A cell is a file and what must be said about it, or the reason why the case cannot occur there.
Under `fail`: exit code 2 and one line that names place, reason, excerpt and remedy. Under `quarantine`: rows read = used + bad + left out
by rule, and every row that is not used stands in the quarantine file. docs/data.md lists the same cases.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from console import UserError, door
from data.__main__ import main
from data.config import DataConfig
from data.load import load_corpus
from data.records import Corpus
from data.tokens import Encoder
from tests.conftest import ROOT
from tests.data.sources import bad_input, faulty_sources
from tests.data.sources.bad_input import CASES
from tests.data.sources.faulty_sources import READERS, Cell, Reader

CELLS = [(case, reader) for case in CASES for reader in READERS]
APPLICABLE = [(case, reader) for case, reader in CELLS if isinstance(CASES[case](READERS[reader]), Cell)]


def check(*arguments: object) -> int:
    """The exit code of python -m data check."""
    with pytest.raises(SystemExit) as stop:
        door(lambda _: main(["check", *map(str, arguments)]))
    return int(stop.value.code or 0)  # type: ignore[arg-type]


def experiment(folder: Path, reader: Reader, **data: Any) -> Path:
    sources = [{"path": "x", "split": "train", "holds": reader.holds, "format": reader.name}, *data.pop("more", [])]
    values = {"root": str(folder / "root"), "sources": sources} | data
    text = {"name": "t", "data": values, "model": {"tiny": {}}, "arms": {"mix": {"preset": "mix"}}}
    (folder / "x.yaml").write_text(json.dumps(text))  # JSON is YAML
    return folder / "x.yaml"


def made(folder: Path, case: str, name: str) -> tuple[Cell, Reader]:
    reader = READERS[name]
    cell = CASES[case](reader)
    assert isinstance(cell, Cell)
    (folder / "root").mkdir()
    cell.write(folder / "root")
    return cell, reader


def account(printed: str) -> dict[str, Any]:
    return next(source for source in json.loads(printed)["sources"] if source["source"] == "x")  # type: ignore[no-any-return]


@pytest.mark.parametrize("case, name", APPLICABLE)
def test_fail(case: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell, reader = made(tmp_path, case, name)
    code = check(experiment(tmp_path, reader, **cell.data), *cell.overrides)
    said = capfd.readouterr()
    if cell.accepted:
        assert code == 0, said.err
        assert re.search(cell.reason, said.err + " ".join(said.out.split())), said
        return
    *warnings, line = said.err.splitlines()
    assert all(warning.startswith("warning: x: no rows") for warning in warnings)
    assert code == 2 and line.startswith("error: ") and said.out == ""
    assert re.search(cell.place + cell.reason, line), line
    assert re.search(cell.remedy, line), line
    assert len(line) < 700


@pytest.mark.parametrize("case, name", [(c, n) for c, n in APPLICABLE if not CASES[c](READERS[n]).accepted])  # type: ignore[union-attr]
def test_quarantine(case: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell, reader = made(tmp_path, case, name)
    bad = tmp_path / "run" / "refused.jsonl"
    path = experiment(tmp_path, reader, **cell.data)
    code = check(path, "data.bad_rows_limit=1", "--json", "--quarantine", bad, *cell.overrides)
    said = capfd.readouterr()
    if cell.ends or not cell.used:  # nobody knows how many rows are lost, or nothing is left: an error under every policy
        assert code == 2 and re.search(cell.reason if cell.ends else "no rows are left|also stand", said.err), said
        return
    assert code == 0, said.err
    told = account(said.out)
    assert told["read"] == told["used"] + told["bad"] + told["left_out_by_rule"]
    assert (told["used"], told["bad"]) == (cell.used, cell.bad)
    written = [json.loads(line) for line in bad.read_text().splitlines()]
    assert sum(not row["by_rule"] for row in written) == cell.bad and all(
        set(row) == {"where", "reason", "excerpt", "by_rule"} for row in written
    )
    first = next(row for row in written if not row["by_rule"])
    assert re.search(cell.place + cell.reason, f"{first['where']}: {first['reason']}: {first['excerpt']}"), first
    assert len(first["excerpt"]) <= 60


@pytest.mark.parametrize("name", READERS)
def test_the_good_rows_are_good(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The twin of every cell: the same file without its fault."""
    reader = READERS[name]
    (tmp_path / "root").mkdir()
    reader.write(tmp_path / "root", faulty_sources.GOOD)
    assert check(experiment(tmp_path, reader), "--json") == 0
    told = account(capfd.readouterr().out)
    assert (told["read"], told["used"], told["bad"]) == (3, 3, 0)


# --- what is accepted, and what becomes of it -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    from data.wording.tiny_tokenizer import make_tokenizer

    return Encoder(make_tokenizer(["one two three, what is it? <s>[INST]"] * 5, 400))


def corpus_of(folder: Path, reader: Reader, rows: faulty_sources.Rows, **options: Any) -> Corpus:
    (folder / "root").mkdir()
    reader.write(folder / "root", rows)
    source = {"path": "x", "split": "train", "holds": reader.holds, "format": reader.name}
    return load_corpus(DataConfig.model_validate({"root": str(folder / "root"), "sources": [source]} | options), 0)


@pytest.mark.parametrize("name", READERS)
def test_special_tokens_are_text(name: str, tmp_path: Path, encoder: Encoder) -> None:
    """What stands in a file can end no item and begin none: `</s>` becomes ordinary tokens, and comes back as it was."""
    text = "one</s> two<s><pad>"
    part = corpus_of(tmp_path, READERS[name], [{"id": "a", "text": text}]).part("train")
    if part.choices:
        assert part.choices[0].question == text
        ids, control = encoder.prompt(text)[1:], encoder.eos_id
    else:
        assert part.documents[0].text == text
        ids, control = encoder.document(part.documents[0])[1:], encoder.eos_id
    assert not {0, 1, control} & set(ids)
    assert text in encoder._backend.decode(ids, skip_special_tokens=False)
    encoder._backend.encode_special_tokens = False  # the twin: as a tokenizer does it by default
    try:
        assert control in encoder._backend.encode(text).ids
    finally:
        encoder._backend.encode_special_tokens = True


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].holds == "documents"])  # choices are never trained
def test_an_item_longer_than_the_row(name: str, tmp_path: Path, encoder: Encoder) -> None:
    """Refused by its id, or split and counted, by policy; a question is refused always. data/rows/flat_rows.py shows that no token is lost."""
    from data.curriculum.catalogue import catalogue_of
    from data.rows.token_store import write_store
    from trainer.jobs.prepare import check_lengths

    corpus = corpus_of(tmp_path, READERS[name], [{"id": "short", "text": "one"}, {"id": "long", "text": "one two " * 40}])
    catalogue = catalogue_of(corpus)
    store = write_store(tmp_path / "tokens", catalogue, encoder)
    assert check_lengths(store, catalogue, 10_000, "refuse") == 0
    assert check_lengths(store, catalogue, 16, "split") == 1
    with pytest.raises(UserError, match=r"document train_documents/long has \d+ tokens; rows .* hold 16: raise trainer.row_tokens .*split"):
        check_lengths(store, catalogue, 16, "refuse")


@pytest.mark.parametrize("policy, used", [("drop_from_train", 3), ("drop_from_exam", 2), ("allow", 3)])
@pytest.mark.parametrize("name", READERS)
def test_exam_texts_in_training_by_policy(name: str, policy: str, used: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cell, reader = made(tmp_path, "exam_question_in_training", name)
    (tmp_path / "root" / "more.jsonl").write_text('{"id": "other", "text": "something else"}\n')  # so that something is left to train
    more = {"sources": [*cell.data["sources"], {"path": "more.jsonl", "split": "train", "holds": "documents"}]}
    assert check(experiment(tmp_path, reader, **more), f"data.overlap={policy}", "--json") == 0
    said = json.loads(capfd.readouterr().out)
    told = next(source for source in said["sources"] if source["source"] == "x")
    assert (told["read"], told["used"], told["left_out_by_rule"], told["bad"]) == (3, used, 3 - used, 0)
    overlap = said["overlap"]
    assert overlap["policy"] == policy and len(overlap["question_ids"]) + len(overlap["document_ids"]) == 1  # reported always
    assert bool(overlap["dropped"]) == (policy != "allow")


def test_other_faults_of_a_dataset_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A state file that names a file elsewhere; a link inside the folder that leads out."""
    reader = READERS["huggingface"]
    (tmp_path / "root").mkdir()
    reader.write(tmp_path / "root", faulty_sources.GOOD)
    folder = tmp_path / "root" / "x"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": "../../y.arrow"}]}))
    assert check(experiment(tmp_path, reader)) == 2
    assert "names files outside its folder; save the dataset again" in capfd.readouterr().err
    (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "outside").write_text("")
    (folder / "link.arrow").symlink_to(tmp_path / "outside")
    assert check(experiment(tmp_path, reader)) == 2
    assert "link.arrow: leads out of data.root" in capfd.readouterr().err


# --- the table ------------------------------------------------------------------------------------------------------


def test_every_cell_is_decided() -> None:
    for case, reader in CELLS:
        cell = CASES[case](READERS[reader])
        assert isinstance(cell, Cell) or (isinstance(cell, str) and len(cell) > 10), (case, reader)


def test_docs_list_the_same_cases() -> None:
    """The table "Bad input" of docs/data.md: a row a case, a column a reader, – where the case cannot occur."""
    text = (ROOT / "docs" / "data.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    [header] = [n for n, line in enumerate(lines) if line.startswith("| case |")]
    assert [cell.strip(" `") for cell in lines[header].strip("|").split("|")][1 : 1 + len(READERS)] == list(READERS)
    told = {}
    for line in lines[header + 2 : header + 2 + len(CASES)]:
        case, *marks = [cell.strip(" `") for cell in line.strip("|").split("|")]
        told[case] = marks[: len(READERS)]
    expected = {case: [bad_input.mark(CASES[case](READERS[reader])) for reader in READERS] for case in CASES}
    assert told == expected
