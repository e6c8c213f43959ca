"""Files are known by what is in them; what was hashed once is not read again, and two changes that hide are found."""

import json
import os
import time
from pathlib import Path

from data.ground.contents import contents, names_and_contents


def aged(memory: Path) -> None:
    """As if the files had been hashed well after their last change."""
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({name: {**entry, "hashed_ns": entry["hashed_ns"] + 10**10} for name, entry in known.items()}))


def forge(memory: Path) -> None:
    """Remembered hashes that no file has: whoever answers with them has not read it."""
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({name: {**entry, "sha256": "remembered"} for name, entry in known.items()}))


def test_equal_bytes_are_equal_wherever_they_lie(tmp_path: Path) -> None:
    for place, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "weights").write_text(text)
        os.utime(tmp_path / place / "weights", (1, 1))  # sizes and times tell nothing apart here
    a, b, c = (names_and_contents([tmp_path / place / "weights"], tmp_path / "memory.json") for place in "abc")
    assert a == b != c


def test_a_file_is_read_once(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_text("one")
    [true] = contents([file], memory)
    aged(memory)
    forge(memory)
    assert contents([file], memory) == ["remembered"]
    os.utime(file, (1, 1))
    assert contents([file], memory) == [true], "the twin: other times, so it is read again"


def test_other_bytes_behind_the_same_size_and_time(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_text("one")
    status = file.stat()
    before = contents([file], memory)
    aged(memory)
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert contents([file], memory) != before


def test_what_was_hashed_in_the_tick_of_its_change_is_hashed_again(tmp_path: Path) -> None:
    """A change within one tick of the file system's clock leaves all times as they are."""
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_text("one")
    [true] = contents([file], memory)
    assert file.stat().st_ctime_ns > time.time_ns() - 2 * 10**9, "a slow machine: this says nothing"
    forge(memory)
    assert contents([file], memory) == [true]


def test_a_memory_that_cannot_be_used_costs_time_only(tmp_path: Path) -> None:
    file, memory = tmp_path / "weights", tmp_path / "memory.json"
    file.write_text("one")
    true = contents([file], None)
    memory.write_text("{torn")
    assert contents([file], memory) == true == contents([file], tmp_path / "file.json" / "below")
