"""A second copy of what is committed, on anything that pyarrow's filesystems know (S3, GCS, HDFS, a folder). The run folder stays the truth.

Files first, the manifest last: an object appears whole or not at all, so a copy that broke off is no stage. A mirror that fails is said
and costs nothing else.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs

from console import UserError, say
from trainer.checkpoint import checkpoints, first_bad_file
from trainer.store import StageStore, write_json

_EVERY_S = 5.0
_CHUNK = 8 * 2**20


class Mirror:
    """`uri` as in pyarrow: s3://bucket/path?region=…&endpoint_override=…, file:///folder; credentials as the platform gives them."""

    def __init__(self, uri: str, run_folder: Path) -> None:
        try:
            self._fs, root = pyarrow.fs.FileSystem.from_uri(uri)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"trainer.checkpoint.mirror: {uri}: {str(error).splitlines()[0]}") from None
        self._root = f"{root.rstrip('/')}/{run_folder.name}"
        self._run_folder = run_folder
        self._pushed: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Copies what is left, then ends."""
        self._stop.set()
        self._thread.join()
        self.push()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.push()

    def push(self) -> None:
        """Committed stages and each unfinished stage's newest checkpoint that are not there yet."""
        for stage in sorted((self._run_folder / "stages").glob("*")):
            places = [stage] if (stage / "manifest.json").exists() else [c.folder for c in checkpoints(stage)[:1]]
            for place in places:
                name = place.relative_to(self._run_folder).as_posix()
                if name in self._pushed:
                    continue
                try:
                    self._push(place, name)
                    self._pushed.add(name)
                except (OSError, ValueError) as error:  # also a checkpoint that was cleaned up meanwhile
                    if place.exists():
                        say(f"mirror: {name} could not be copied ({str(error).splitlines()[0]}); trying again")

    def _push(self, place: Path, name: str) -> None:
        manifest = f"{self._root}/{name}/manifest.json"
        text = (place / "manifest.json").read_bytes()
        if self._exists(manifest) and self._read(manifest).get("files") == json.loads(text).get("files"):
            return  # other files: the stage was trained anew
        listed = [*json.loads(text).get("files", {}), *(p.relative_to(place).as_posix() for p in place.glob("hf/*")), "metrics.jsonl"]
        for file in dict.fromkeys(listed):
            if (place / file).exists():
                self._copy_up(place / file, f"{self._root}/{name}/{file}")
        with self._fs.open_output_stream(manifest) as out:
            out.write(text)

    def fetch(self, keys: list[str], useless: Callable[[dict[str, Any]], bool] = lambda _: False) -> list[str]:
        """Brings stages and checkpoints of `keys` that the run folder lacks; returns their names. Damaged copies are refused, and whose manifests are useless(…)."""
        store, fetched = StageStore(self._run_folder), []
        for key in keys:
            if store.manifest(key) is not None:
                continue
            names = [f"stages/{key}"] if self._exists(f"{self._root}/stages/{key}/manifest.json") else self._newest_checkpoint(key)
            for name in names:
                if not useless(self._read(f"{self._root}/{name}/manifest.json")) and self._fetch(name):
                    fetched.append(name)
        return fetched

    def _newest_checkpoint(self, key: str) -> list[str]:
        folder = pyarrow.fs.FileSelector(f"{self._root}/stages/{key}/checkpoints", allow_not_found=True)
        names = sorted(f"stages/{key}/checkpoints/{info.base_name}" for info in self._fs.get_file_info(folder))
        here = {c.folder.name for c in checkpoints(self._run_folder / "stages" / key)}
        return [name for name in names if self._exists(f"{self._root}/{name}/manifest.json") and Path(name).name not in here][-1:]

    def _fetch(self, name: str) -> bool:
        place = self._run_folder / name
        manifest = self._read(f"{self._root}/{name}/manifest.json")
        selector = pyarrow.fs.FileSelector(f"{self._root}/{name}", recursive=True)
        for info in self._fs.get_file_info(selector):
            relative = info.path.split(f"{self._root}/{name}/", 1)[-1]
            if ".." in relative.split("/"):  # an object's name may be anything; as a path it would lead out of the run folder
                continue
            if info.type == pyarrow.fs.FileType.File and relative != "manifest.json" and "checkpoints/" not in relative:
                self._copy_down(info.path, place / relative)
        if bad := first_bad_file(place, manifest.get("files", {})):
            say(f"mirror: {bad}; that copy is not used")
            return False
        write_json(place / "manifest.json", manifest)
        return True

    def _exists(self, path: str) -> bool:
        return self._fs.get_file_info(path).type == pyarrow.fs.FileType.File  # type: ignore[no-any-return]

    def _read(self, path: str) -> dict[str, Any]:
        with self._fs.open_input_stream(path) as file:
            return json.loads(file.read())  # type: ignore[no-any-return]

    def _copy_up(self, source: Path, target: str) -> None:
        if isinstance(self._fs, pyarrow.fs.LocalFileSystem):  # objects need no folders
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        with source.open("rb") as file, self._fs.open_output_stream(target) as out:
            while chunk := file.read(_CHUNK):
                out.write(chunk)

    def _copy_down(self, source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(source) as file, target.open("wb") as out:
            while chunk := file.read(_CHUNK):
                out.write(chunk)
