"""The mirror at size: ranks copy their own files, what is being copied is held, what the run folder has dropped goes, and it says when it is too slow."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from console import UserError
from trainer.store.checkpoint import Saver, checkpoints, hold, release
from trainer.store.mirror import GONE_S, Mirror, marker, now_file, owner, rank_file
from trainer.store.mirror_rank import MirrorRank
from trainer.store.stages import StageStore, write_json


def files_in(place: Path, names: dict[str, bytes]) -> dict[str, dict[str, object]]:
    for name, content in names.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in names.items()}


def checkpoint(run: Path, step: int, ranks: int = 2, key: str = "a1") -> Path:
    place = run / "stages" / key / "checkpoints" / f"step-{step:08d}"
    files = files_in(place, {f"rank-{rank:05d}.safetensors": os.urandom(64) for rank in range(ranks)})
    write_json(place / "manifest.json", {"step": step, "files": files})
    return place


def stage(run: Path, key: str) -> None:
    place = StageStore(run).folder(key)
    StageStore(run).commit(key, {"files": files_in(place, {"weights/rank-00000.safetensors": key.encode(), "hf/config.json": b"{}"})})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "mirror" / "run"


def test_ranks_copy_their_own_files(run: Path, there: Path) -> None:
    """The driver waits for the ranks' files and adds the manifest; what it copied itself is nothing but what no rank has."""
    place = checkpoint(run, 10, ranks=3)
    ranks = [MirrorRank(there.parent.as_uri(), run, rank, 3) for rank in range(3)]
    mirror = Mirror(there.parent.as_uri(), run)
    copied_here: list[str] = []
    copy = mirror._copy_here
    mirror._copy_here = lambda place, name, file: (copied_here.append(file), copy(place, name, file))[1]  # type: ignore[method-assign]
    mirror.push()
    for rank in ranks:
        rank.close()
    assert not copied_here
    copy_of = there / place.relative_to(run)
    assert {path.name: path.read_bytes() for path in copy_of.iterdir()} == {path.name: path.read_bytes() for path in place.iterdir()}
    assert not now_file(run).exists() and not list((run / "mirroring").glob("rank-*"))
    assert [Mirror(there.parent.as_uri(), run.with_name("empty") / "run").fetch(["a1"])] == [["stages/a1/checkpoints/step-00000010"]]


def test_a_rank_that_is_gone_is_not_waited_for(run: Path, there: Path) -> None:
    checkpoint(run, 10)
    write_json(rank_file(run, 0), {"world_size": 2})
    long_ago = time.time() - 2 * GONE_S
    os.utime(rank_file(run, 0), (long_ago, long_ago))
    Mirror(there.parent.as_uri(), run).push()
    assert (there / "stages/a1/checkpoints/step-00000010/manifest.json").exists()


def test_an_old_copy_of_a_file_is_not_believed(run: Path, there: Path) -> None:
    """A stage that was trained anew has files of the same names and sizes."""
    place = checkpoint(run, 10)
    name = place.relative_to(run).as_posix()
    (there / name / ".copied").mkdir(parents=True)
    (there / marker(name, "rank-00000.safetensors")).write_text("another hash")
    (there / name / "rank-00000.safetensors").write_bytes(b"old")
    Mirror(there.parent.as_uri(), run).push()
    assert (there / name / "rank-00000.safetensors").read_bytes() == (place / "rank-00000.safetensors").read_bytes()


@pytest.mark.parametrize(
    "file, number, whose", [("rank-00007.safetensors", 0, 7), ("weights/rank-00007.safetensors", 3, 7), ("hf/config.json", 3, 3)]
)
def test_whose_file(file: str, number: int, whose: int) -> None:
    assert owner(file, number) == whose


def test_what_the_run_folder_dropped_goes(run: Path, there: Path) -> None:
    mirror = Mirror(there.parent.as_uri(), run)
    for step in (10, 20):
        checkpoint(run, step)
        mirror.push()
    names = lambda: sorted(path.name for path in (there / "stages/a1/checkpoints").glob("*"))  # noqa: E731
    assert names() == ["step-00000010", "step-00000020"], "the twin: both are still in the run folder"
    old = checkpoints(run / "stages" / "a1")[1].folder
    (old / "manifest.json").unlink()
    checkpoint(run, 30)
    mirror.push()
    assert names() == ["step-00000020", "step-00000030"]
    stage(run, "a1")
    mirror.push()
    assert not names() and (there / "stages/a1/manifest.json").exists()
    mirror.drop("stages/a1")
    assert not (there / "stages/a1").exists()


def test_an_empty_run_folder_drops_nothing(run: Path, there: Path) -> None:
    """Storage that was lost: the mirror is what is left."""
    checkpoint(run, 10)
    Mirror(there.parent.as_uri(), run).push()
    again = run.with_name("lost") / "run"
    other = Mirror(there.parent.as_uri(), again)
    stage(again, "b2")
    other.push()
    assert (there / "stages/a1/checkpoints/step-00000010/manifest.json").exists()


def test_what_is_copied_is_held(run: Path) -> None:
    import torch

    folder = run / "stages" / "a1"
    saver = Saver(folder, 0, 1, {"job": {"key": "a1"}}, 1, 1)

    def save(step: int) -> list[int]:
        saver.save(step, [("w", 0, torch.ones(4))], {})
        saver.wait()
        return [saved.step for saved in checkpoints(folder)]

    assert save(1) == [1]
    held = checkpoints(folder)[0].folder
    hold(held)
    assert save(2) == [2, 1] and save(3) == [3, 1], "the one that is copied, and the newest"
    release(held)
    assert save(4) == [4], "the twin"


def test_a_mirror_that_cannot_keep_up_says_so(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoints come every second, and copying one takes two."""
    mirror = Mirror(there.parent.as_uri(), run)
    first = checkpoint(run, 10)
    copy = mirror._copy

    def slowly(place: Path, name: str, files: dict[str, str]) -> None:
        if place == first:
            for n, step in enumerate((20, 30)):
                newer = checkpoint(run, step) / "manifest.json"
                os.utime(newer, (time.time() + n, time.time() + n))
            time.sleep(1.2)
        copy(place, name, files)

    mirror._copy = slowly  # type: ignore[method-assign]
    mirror.push()
    told = " ".join(capsys.readouterr().err.split())
    assert "mirror: cannot keep up: stages/a1/checkpoints/step-00000010 took 1 s" in told and "one comes every 1 s" in told
    there_now = sorted(path.name for path in (there / "stages/a1/checkpoints").iterdir())
    assert there_now == ["step-00000010", "step-00000030"], "those between are left out"
    mirror.push()
    assert "cannot keep up" not in capsys.readouterr().err


def test_a_driver_that_copies_renews_its_hold(run: Path, there: Path) -> None:
    place = checkpoint(run, 10)
    mirror = Mirror(there.parent.as_uri(), run)
    rank = threading.Event()
    write_json(rank_file(run, 0), {"world_size": 1})  # at work for GONE_S from now, and never done
    pushing = threading.Thread(target=mirror.push, daemon=True)
    pushing.start()
    deadline = time.monotonic() + 10
    while not (place / "held").exists() and time.monotonic() < deadline:
        rank.wait(0.05)
    assert (place / "held").exists() and json.loads(now_file(run).read_text())["name"].endswith("step-00000010")
    rank_file(run, 0).unlink()
    pushing.join(timeout=20)
    assert not pushing.is_alive() and not (place / "held").exists()


def test_a_mirror_that_does_not_answer_stops_no_run_that_has_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once. A run folder without any is another matter: its stages may lie there, and would be trained again."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    run = tmp_path / "run"
    away = "s3://nowhere/there?endpoint_override=127.0.0.1:1&scheme=http"
    with pytest.raises(UserError, match=r"mirror: it cannot be read .*this run folder has no stage yet, which may lie there"):
        Mirror(away, run).fetch(["a1"])
    stage(run, "a1")
    mirror = Mirror(away, run)
    assert mirror.fetch(["a1", "b2"]) == [] and not mirror.holds("b2")
    mirror.fetch_file("known-as.json")
    assert capsys.readouterr().err.count("goes on with what its folder has") == 1
