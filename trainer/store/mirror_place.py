"""Where a mirror lies: files up and down on anything that pyarrow's filesystems know (S3, GCS, HDFS, a folder)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs

from console import UserError

_CHUNK = 8 * 2**20


class Place:
    """`uri` as in pyarrow: s3://bucket/path?region=…&endpoint_override=…, file:///folder; credentials as the platform gives them. Names are relative to
    the run's own folder there."""

    def __init__(self, uri: str, run_name: str) -> None:
        try:
            self._fs, root = pyarrow.fs.FileSystem.from_uri(uri)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"trainer.checkpoint.mirror: {uri}: {str(error).splitlines()[0]}") from None
        self._root = f"{root.rstrip('/')}/{run_name}"

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(self._path(name)).type == pyarrow.fs.FileType.File  # type: ignore[no-any-return]

    def read(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._path(name)) as file:
            return file.read()  # type: ignore[no-any-return]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads(self.read(name))  # type: ignore[no-any-return]

    def write(self, name: str, content: bytes) -> None:
        self._make_room(name)
        with self._fs.open_output_stream(self._path(name)) as out:
            out.write(content)

    def names(self, folder: str, recursive: bool = False) -> list[str]:
        """Files (and, where not recursive, folders) below `folder`, relative to it; [] where there is none."""
        selector = pyarrow.fs.FileSelector(self._path(folder), allow_not_found=True, recursive=recursive)
        found = [info for info in self._fs.get_file_info(selector) if not recursive or info.type == pyarrow.fs.FileType.File]
        return sorted(info.path.split(f"{self._path(folder)}/", 1)[-1] for info in found)

    def delete(self, folder: str) -> None:
        """The manifest first: what is half deleted must not look whole."""
        if self.exists(f"{folder}/manifest.json"):
            self._fs.delete_file(self._path(f"{folder}/manifest.json"))
        if self._fs.get_file_info(self._path(folder)).type == pyarrow.fs.FileType.Directory:
            self._fs.delete_dir(self._path(folder))

    def up(self, source: Path, name: str, moving: Callable[[], None] = lambda: None) -> None:
        """`moving` is called after every chunk."""
        self._make_room(name)
        with source.open("rb") as file, self._fs.open_output_stream(self._path(name)) as out:
            while chunk := file.read(_CHUNK):
                out.write(chunk)
                moving()

    def down(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open_input_stream(self._path(name)) as file, target.open("wb") as out:
            while chunk := file.read(_CHUNK):
                out.write(chunk)

    def _make_room(self, name: str) -> None:
        if isinstance(self._fs, pyarrow.fs.LocalFileSystem):  # objects need no folders
            self._fs.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
