"""An OpenAI-compatible service on this machine that answers by rule: real HTTP, no model. Some of what it says is wrong on purpose."""

import hashlib
import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-of-the-test"


@dataclass
class Service:
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """What is answered before anything else is: 429, 500, …; a text instead of a reply: "not json"."""
    declines: Callable[[dict[str, Any]], str | None] = lambda body: None
    """Why a body is answered with 400, as services word it."""
    wording: Callable[[str], Any] = lambda content: content
    """What becomes of a reply on its way: thoughts before it, a fence around it."""
    fail_after: int | None = None
    """So many good replies, then 401."""
    paid: list[str] = field(default_factory=list)
    """A hash of every body that was answered well."""
    usage: tuple[int, int] = (100, 50)
    """Tokens that a request is said to have read and written."""
    pause_s: float = 0
    """Before every reply."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def questions_about(prompt: str, choices: bool) -> list[dict[str, Any]]:
    """Two good questions about the last words of a document, one without its subject, one without an answer, and the first once more."""
    topic = prompt.split("about the subject ", 1)[1].split(", generate", 1)[0] if "about the subject " in prompt else ""
    topic = topic or (prompt.split("raw text about ", 1)[1].split(", produce", 1)[0] if "raw text about " in prompt else _subject(prompt))
    words = prompt.rstrip().split()
    tail = [" ".join(words[-6:-3]), " ".join(words[-3:])]
    made: list[dict[str, Any]] = [
        {"question": f"Which words stand near the end of what is said about {topic}?", "answer": tail[0], "level": "remember"},
        {"question": f"Name the very last three words written on {topic} by anybody.", "answer": tail[1], "level": "understand"},
        {"question": "What is it?", "answer": tail[1], "level": "remember"},
        {"question": f"When was {topic} first sold, and to whom?", "answer": "Information missing", "level": "apply"},
    ]
    made.append(dict(made[0]))
    if prompt.startswith(BELOW):
        text = prompt.partition("Document:\n")[2].split()
        made.append({"question": f"From its third word on, how does what is known of {topic} begin?", "answer": " ".join(text[2:5])})
    if choices:
        for n, one in enumerate(made):
            options = [f"wrong {n} {i}" for i in range(3)]
            options.insert(n % 4, one["answer"])
            one |= {"choices": options, "answer": "ABCD"[n % 4]}
    return made


BELOW = "Below is a document about "


def _subject(prompt: str) -> str:
    """Of a method's prompt."""
    return prompt.removeprefix(BELOW).partition(". ")[0]


def listed(prompt: str) -> list[str]:
    """Ways to study; or words of a document, one twice and one that does not stand there. Of every fourth document nothing, of every ninth one."""
    if "ways to study" in prompt:
        return [f"Make a list of kind {n}." for n in range(8)]
    document = prompt.partition("Document:\n")[2]
    kind, words = zlib.crc32(document.encode()), document.split()[4:]
    return [] if kind % 4 == 0 else words[:1] if kind % 9 == 0 else [*words[:6], words[0].upper(), "Atlantis"]


def studied(prompt: str, seed: int) -> str:
    """A document's words in an order of the prompt and the seed, and what the prompt says of its form."""
    words = prompt.partition("Document:\n")[2].split()
    random.Random(f"{prompt} {seed}").shuffle(words)
    return f"{_subject(prompt)}: {' '.join(words)}"


def reworded(prompt: str) -> list[str]:
    """Two good wordings of a question, the question itself, one with its answer, one without its names, and one that asks another thing."""
    question, answer = (prompt.partition(f"{what}: ")[2].partition("\n")[0] for what in ("Question", "Answer"))
    words = question.rstrip("?.").split()
    return [
        f"Tell me: {question}", question, f"Is it {answer}? {question}", "Which of them is it?", f"Say why it fell: {question}",
        f"Of {' '.join(words[1:])}: {words[0]}?",
    ]  # fmt: skip


def in_other_words(prompt: str) -> str:
    """A document's words from its end to its beginning; of every fifth document the document itself, of every seventh a line."""
    topic = prompt.split("document about ", 1)[1].split(" as ", 1)[0].split(" and a question", 1)[0]
    document = prompt.partition("Document:\n")[2]
    answer = prompt.partition("Answer: ")[2].partition("\n")[0] if "Answer: " in prompt else ""
    kind = int(hashlib.sha256(document.encode()).hexdigest(), 16)
    if "Question: " not in prompt and kind % 5 == 0:
        return document
    if "Question: " not in prompt and kind % 7 == 0:
        return topic
    style = prompt.partition(" as ")[2].partition(",")[0]
    words = document.split()[::-1] if "encyclopedia" in style else sorted(document.split())
    if "Question: " in prompt:
        random.Random(prompt).shuffle(words)
    return f"{topic}: {' '.join(words)} {answer}"


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service = self.service
        with service.lock:
            service.bodies.append(body)
            status = service.statuses.pop(0) if service.statuses else 200
            if service.fail_after is not None and len(service.paid) >= service.fail_after:
                status = 401
        if self.path != "/v1/chat/completions" or self.headers.get("Authorization") != f"Bearer {KEY}":
            status = 401
        if status == 200 and (why := service.declines(body)):
            self._send(400, {"error": {"message": why}}, {})
            return
        if status not in (200, 299):
            self._send(status, {"error": {"message": f"no: {self.headers.get('Authorization')}"}}, {"Retry-After": "0"})
            return
        time.sleep(service.pause_s)
        with service.lock:
            service.paid.append(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())
        content = service.wording(self._content(body)) if status == 200 else "I cannot do that"
        reply = {
            "choices": [{"message": {"content": content}, "finish_reason": "stop"}],
            "usage": dict(zip(("prompt_tokens", "completion_tokens"), service.usage, strict=True)),
        }
        self._send(200, reply, {})

    def _content(self, body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if "response_format" not in body and "Output JSON" not in prompt:  # a check: knows what stands near the end
            return " ".join(prompt.split()[-40:])
        schema = (
            body.get("response_format", {})
            .get("json_schema", {})
            .get("schema", {"properties": {"questions": {"items": {"properties": {}}}}})
        )
        if "wordings" in schema["properties"]:
            return json.dumps({"wordings": reworded(prompt)})
        if "same" in schema["properties"]:
            return json.dumps({"same": "no" if "fell" in prompt.partition("2. ")[2] else "yes"})
        if "list" in schema["properties"]:
            return json.dumps({"list": listed(prompt)})
        if "text" in schema["properties"]:
            return json.dumps({"text": studied(prompt, body["seed"]) if prompt.startswith(BELOW) else in_other_words(prompt)})
        return json.dumps({"questions": questions_about(prompt, "choices" in schema["properties"]["questions"]["items"]["properties"])})

    def _send(self, status: int, value: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Service]:
    service = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
