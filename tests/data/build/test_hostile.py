"""Files that try to hurt: each refused by name, the others read; nothing is run or fetched. Each attack has a twin that is read."""

import os
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from data.build.confined import Confined
from data.build.documents.extract import extract
from data.build.pages import Page, read_pages
from data.build.walk import Found, find_files
from data.records import Refusal


def make_pdf(text: str, stream: bytes | None = None, extra: str = "") -> bytes:
    """A PDF of one page. stream: the page's compressed content, instead of one that shows the text."""
    content = stream or zlib.compress(f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode())
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R " + extra.encode() + b">>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(content) + content + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    pdf, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(pdf))
        pdf += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return pdf + b"xref\n0 6\n0000000000 65535 f \n" + table + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(pdf)


def test_zip_bomb_in_a_pdf(tmp_path: Path) -> None:
    bomb = zlib.compress(b"0" * (300 << 20), 9)
    assert len(bomb) < 1 << 20
    (tmp_path / "bomb.pdf").write_bytes(make_pdf("", bomb))
    (tmp_path / "good.pdf").write_bytes(make_pdf("what it says"))
    with Confined() as confined:
        assert "error" in confined.read("pdf", tmp_path / "bomb.pdf")
        assert confined.read("pdf", tmp_path / "good.pdf")["text"] == "what it says"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no pdf at all", "not a readable PDF"),
        (make_pdf("x")[:120], "not a readable PDF"),
        (make_pdf(" "), "no text in it"),
    ],
)
def test_broken_pdf(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.pdf").write_bytes(content)
    assert why in extract("pdf", str(tmp_path / "x.pdf"))["error"]


def test_deep_html_and_broken_encodings(tmp_path: Path) -> None:
    (tmp_path / "deep.html").write_text("<div>" * 100_000 + "words")
    (tmp_path / "broken.html").write_bytes(b'<meta charset="utf-8"><p>caf\xe9 \xff\xfe ' + b"x" * 50)
    (tmp_path / "latin.html").write_bytes('<meta charset="iso-8859-1"><p>café</p>'.encode("latin-1"))
    with Confined() as confined:
        assert "error" in confined.read("html", tmp_path / "deep.html")
        assert "not UTF-8 at byte" in confined.read("html", tmp_path / "broken.html").get("error", "")
        assert confined.read("html", tmp_path / "latin.html")["text"].strip() == "café"


def test_html_fetches_and_runs_nothing(tmp_path: Path) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        (tmp_path / "x.html").write_text(
            f'<!DOCTYPE html SYSTEM "{address}/dtd"><html><head><base href="{address}/"><link rel=stylesheet href="{address}/css">'
            f'<meta http-equiv="refresh" content="0;url={address}/meta"></head><body onload="fetch(\'{address}/js\')"><img src="{address}/img">'
            f'<iframe src="{address}/frame"></iframe><p>the words</p><script src="{address}/script">fetch("{address}/in")</script></body></html>'
        )
        with Confined() as confined:
            assert confined.read("html", tmp_path / "x.html")["text"].strip() == "the words"
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_a_parser_that_hangs_or_dies_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text("<p>words</p>")
    os.mkfifo(tmp_path / "never.html")  # opening it waits for a writer
    with Confined(timeout_s=20) as confined:
        assert confined.read("html", tmp_path / "good.html")["text"].strip() == "words"
        assert confined._process is not None
        confined._process.kill()
        confined._process.wait()
        assert confined.read("html", tmp_path / "good.html")["text"].strip() == "words"
        confined._timeout_s = 1
        assert confined.read("html", tmp_path / "never.html") == {"error": "not read within 1 s"}
        confined._timeout_s = 20
        assert confined.read("html", tmp_path / "good.html")["text"].strip() == "words"


def test_the_parser_knows_no_secrets_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDYHALL_API_KEY", "sk-hidden-from-parsers")
    (tmp_path / "x.html").write_text("<p>words</p>")
    with Confined() as confined:
        confined.read("html", tmp_path / "x.html")
        assert confined._process is not None
        proc = Path("/proc", str(confined._process.pid))
        assert b"sk-hidden" not in (proc / "environ").read_bytes()
        limits = (proc / "limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max file size")] == [["0", "0"]]


def test_memory_of_the_parser_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "large.html").write_text("<p>words</p>" * 50_000)
    (tmp_path / "small.html").write_text("<p>words</p>")
    with Confined(timeout_s=240, memory_bytes=80 << 20) as confined:
        assert "memory" in confined.read("html", tmp_path / "large.html")["error"]
        assert confined.read("html", tmp_path / "small.html")["text"] == "words"


def test_folders_deeper_than_recursion(tmp_path: Path) -> None:
    paths = [tmp_path / "/".join(["d"] * depth) for depth in range(1, sys.getrecursionlimit() + 100)]
    for path in paths:
        path.mkdir()
    try:
        (paths[-1] / "words.md").write_text("words")
        (found,) = find_files(tmp_path, [], [])
        assert isinstance(found, Found) and found.name.endswith("/d/words.md")
        (paths[-1] / "words.md").unlink()
    finally:
        for path in reversed(paths):  # shutil.rmtree would recurse
            path.rmdir()


def test_tables_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "fake.parquet").write_bytes(b"no table")
    (tmp_path / "wide.csv").write_bytes(b"a" * 200_000 + b"\n1\n")
    (tmp_path / "long.jsonl").write_bytes(b'{"text": "' + b"x" * (33 << 20) + b'"}\n{"text": "a short row with words enough"}\n')
    (tmp_path / "numbers.jsonl").write_bytes(b"1\n2\n")
    with Confined() as confined:
        read = {
            found.name: list(read_pages(found, tmp_path, confined, {}))
            for found in find_files(tmp_path, [], [])
            if isinstance(found, Found)
        }
    reasons = {name: [page.reason.split(" (")[0] for page in pages if isinstance(page, Refusal)] for name, pages in read.items()}
    assert reasons == {
        "fake.parquet": ["not a readable Parquet file"],
        "wide.csv": ["no column of text"],
        "long.jsonl": ["longer than 32 MB"],
        "numbers.jsonl": ["no row that is an object {…}"],
    }
    assert [page.text for page in read["long.jsonl"] if isinstance(page, Page)] == ["a short row with words enough"]


def test_one_line_of_a_megabyte(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_bytes(b"x" * (2 << 20))
    (tmp_path / "large.md").write_bytes(b"")
    os.truncate(tmp_path / "large.md", 33 << 20)
    (entry,) = [found for found in find_files(tmp_path, [], []) if isinstance(found, Found)]
    (line,) = read_pages(entry, tmp_path, Confined(), {})
    assert isinstance(line, Refusal) and line.reason.startswith("a line of 2,097,152 characters")
    (large,) = [refused for refused in find_files(tmp_path, [], []) if isinstance(refused, Refusal)]
    assert large.reason.startswith("larger than 32 MB")
