"""What is asked of a model and what it has answered, on disk: one file an answer, named after the question. Nothing is paid for twice."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict


@dataclass(frozen=True, slots=True)
class Declined:
    """Why this request cannot be answered (too long for the model), for people; nothing was paid, and it is asked again next time."""

    reason: str


class Reply(TypedDict):
    text: str
    finish: str
    """"stop", or "length" where it was cut off."""
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. Its key says everything that the answer depends on, so equal keys are one request."""

    subject: str
    """What it is about (a document's id, a question's id); no part of the key."""
    messages: list[dict[str, str]]
    schema: dict[str, Any] | None
    max_tokens: int
    seed: int
    model: str
    """Name and revision."""
    temperature: float = 0.0

    @property
    def key(self) -> str:
        parts = [self.messages, self.schema, self.max_tokens, self.seed, self.model, self.temperature]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class Answers:
    """A folder of replies, DIR/answers/ab/abcd….json, each put in place whole; on a cluster it is storage that every node shares."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        try:
            return json.loads(self.path(key).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None

    def tokens(self) -> int:
        """Read and written for all replies that lie here, whatever asked for them: what this folder has cost. Reads every one."""
        replies = (self.get(path.stem) for path in self.folder.glob("??/*.json"))
        return sum(reply["prompt_tokens"] + reply["answer_tokens"] for reply in replies if reply is not None)

    def are_none(self) -> bool:
        return next(self.folder.glob("??/*.json"), None) is None

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def put(self, key: str, reply: Reply) -> None:
        """Committed when it returns: written, flushed to the disk, renamed. Half a pair of surrogates, which a service may send, becomes "?"."""
        reply = {**reply, "text": reply["text"].encode("utf-8", "replace").decode()}
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{uuid.uuid4().hex}.part")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(reply, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


@dataclass(frozen=True, slots=True)
class Pending:
    """A request in a file of requests: where its line is. So a plan of a million requests is light to hand around."""

    key: str
    offset: int


def write_pending(requests: Iterable[Request], answers: Answers, path: Path) -> list[Pending]:
    """Writes the requests that have no answer yet, one a line; equal ones once."""
    pending: dict[str, Pending] = {}
    with path.open("wb") as file:
        for request in requests:
            key = request.key
            if key in pending or answers.has(key):
                continue
            pending[key] = Pending(key, file.tell())
            file.write(json.dumps(asdict(request), ensure_ascii=True).encode() + b"\n")
    return list(pending.values())


def read_pending(path: Path, offsets: Iterable[int]) -> Iterator[Request]:
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield Request(**json.loads(file.readline()))
