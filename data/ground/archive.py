"""Zip archives of XML, as office programs write them: opened only where what they unpack to is bounded."""

import zipfile
from pathlib import Path

_MOST_UNPACKED = 512 << 20
_MOST_ENTRIES = 20_000


class NoDocument(ValueError):
    """Why a file is not what its ending says, for people."""


def open_archive(path: str | Path, most_unpacked: int = _MOST_UNPACKED) -> zipfile.ZipFile:
    """Raises NoDocument for none, and for one that unpacks to more than `most_unpacked` bytes or to more parts than a document has."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        with open(path, "rb") as file:
            old = file.read(4) == b"\xd0\xcf\x11\xe0"
        raise NoDocument(
            "encrypted, or of an old kind under a new name; save it anew without a password"
            if old
            else "no whole zip archive (cut off, or another kind of file)"
        ) from None
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > most_unpacked:
        archive.close()
        raise NoDocument(f"unpacks to more than {most_unpacked >> 20} MB or {_MOST_ENTRIES:,} parts (a zip bomb?)")
    return archive
