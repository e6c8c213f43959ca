"""A teacher store that is killed while it is made, at every place: what is committed is what was said, and what was kept is not read again."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.rows.lessons import BEGUN, TOP
from trainer.store.checkpoint import is_whole
from trainer.teaching.store import Said, Writer

POSITIONS = 10


def said(first: int, end: int) -> list[Said]:
    places = np.arange(first, end)
    ids, log_probs = np.full((len(places), TOP), 7, np.uint32), np.full((len(places), TOP + 1), -1.5, np.float32)
    return [(places, places.astype(np.uint32), ids, log_probs)]


def finish(folder: Path) -> None:
    writer = Writer(folder, POSITIONS)
    for place in range(POSITIONS):
        if not writer.has(np.array([place])):
            writer.write(said(place, place + 1))
    writer.commit({}, 0)


def is_right(folder: Path) -> bool:
    ids, log_probs = (np.fromfile(folder / name, kind) for name, kind in (("ids.bin", np.uint32), ("log_probs.bin", np.float32)))
    left = sorted(path.name for path in folder.iterdir())
    return (
        is_whole(folder)
        and (ids == 7).all()
        and (log_probs == -1.5).all()
        and left == ["ids.bin", "log_probs.bin", "manifest.json", "tokens.bin"]
    )


def half_read(folder: Path) -> Writer:
    writer = Writer(folder, POSITIONS)
    writer.write(said(0, 5))
    writer.save()
    return writer


def test_what_was_kept_is_gone_on_with(tmp_path: Path) -> None:
    half_read(tmp_path)
    again = Writer(tmp_path, POSITIONS)
    assert again.goes_on and again.has(np.arange(5)) and not again.has(np.arange(4, 6))
    finish(tmp_path)
    assert is_right(tmp_path) and not Writer(tmp_path, POSITIONS).goes_on


@pytest.mark.parametrize("gone", [".ids.bin", ".log_probs.bin"])
def test_what_was_kept_of_other_drafts_is_not_believed(tmp_path: Path, gone: str) -> None:
    """Killed as the store was put in place, and once more before the next pass had kept anything: zeros stood for what the teacher had said."""
    half_read(tmp_path)
    (tmp_path / gone).replace(tmp_path / gone[1:])
    assert not Writer(tmp_path, POSITIONS).goes_on
    assert not Writer(tmp_path, POSITIONS).goes_on and not (tmp_path / BEGUN).exists()
    finish(tmp_path)
    assert is_right(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PK torn"])
def test_a_torn_file_is_read_anew(tmp_path: Path, damage: bytes) -> None:
    half_read(tmp_path)
    (tmp_path / BEGUN).write_bytes(damage)
    assert not Writer(tmp_path, POSITIONS).goes_on
    finish(tmp_path)
    assert is_right(tmp_path)


def test_a_store_with_a_hole_is_not_committed(tmp_path: Path) -> None:
    writer = half_read(tmp_path)
    with pytest.raises(AssertionError, match="5 of 10 positions were not read"):
        writer.commit({}, 0)
    assert not (tmp_path / "manifest.json").exists()
    writer.keep_answers({3: [1, 2]})
    assert writer.answers() == {3: [1, 2]} == {int(k): v for k, v in json.loads((tmp_path / ".answers.json").read_text()).items()}
