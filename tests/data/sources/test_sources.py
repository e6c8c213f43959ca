"""Sources that are themselves at fault, or that lead out of their folder."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from console import UserError
from data.config import Source
from data.readers import read_source
from data.records import Document
from data.sources.raw_rows import Row, excerpt
from tests.data.sources.reading import GOOD


@pytest.mark.parametrize("path", ["../secret.jsonl", "sub/../../secret.jsonl", "link.jsonl", "linked/secret.jsonl", "/etc/hostname"])
def test_leaving_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text(GOOD)
    (root / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of data.root"):
        list(read_source(Source(path=path, split="train", holds="documents"), root, Counter()))


def test_links_and_dots_inside_the_root_are_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(GOOD)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for path in ("link.jsonl", "sub/../a.jsonl"):
        assert len(list(read_source(Source(path=path, split="train", holds="documents"), tmp_path, Counter()))) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "missing"}, "cannot be read: No such file"),
        ({"path": "sub"}, "not a regular file"),
        ({"path": "fifo"}, "not a regular file"),
        ({"path": "loop"}, "no usable path|cannot be read"),
        ({"path": "a\0b"}, "no usable path"),
        ({"holds": "both"}, "holds: both needs format"),
        ({"format": "choices"}, "format choices cannot hold documents"),
        ({"format": "wiki_pages", "holds": "choices"}, "cannot hold choices"),
        ({"columns": {"idd": "x"}}, "idd is no field of documents; did you mean id"),
        ({"format": "interleaved", "columns": {"id": "x"}}, "fixed names"),
        ({"format": "huggingface", "path": "/etc"}, "leads out|neither"),
        ({"format": "huggingface", "path": "../x/y"}, "neither|leads out"),
    ],
)
def test_sources_at_fault(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "fifo")
    source = Source.model_validate({"path": "x", "split": "train", "holds": "documents"} | options)
    with pytest.raises(UserError, match=message):
        list(read_source(source, tmp_path, Counter()))


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.root: missing"):
        list(read_source(Source(path="x", split="train", holds="documents"), None, Counter()))


def test_huggingface_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"key": [1, 2], "text": ["one", ""], "unused": [[1], [2]]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(str(tmp_path / "hf"))
    source = Source(path="hf", split="train", holds="documents", format="huggingface", columns={"id": "key"})
    good, bad = read_source(source, tmp_path, Counter())
    assert isinstance(good, Row) and good.record == Document("1", "one")
    assert str(bad) == 'hf:row 2: text is empty: {"key": 2, "text": ""}'
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "hf").symlink_to(tmp_path / "hf")
    with pytest.raises(UserError, match="leads out of data.root"):
        list(read_source(source, tmp_path / "outside", Counter()))


def test_excerpt_is_short_and_printable() -> None:
    assert excerpt("a\x1b[31m\n\tb") == "a [31m b"
    assert len(excerpt("x" * 1000)) == 60 and excerpt("\ud800") == "\\ud800"
