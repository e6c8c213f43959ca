"""Files to documents: what is read, how it is cut, what is the same; every file accounted for."""

import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from console import UserError
from data.build.making.account import LEFT_OUT, Account
from data.build.making.chunks import cut
from data.build.making.near import Benchmarks, Duplicates
from data.build.making.reading import Reading, ReadOptions, Unit, language_of, read_folder
from data.build.making.splits import split_units
from data.build.pages import Page
from data.build.walk import CODE, Found, find_files
from data.records import Refusal
from tests.data.build.test_command import prose
from tests.data.build.test_hostile import make_pdf

TEXT = "A sentence that is long enough to be asked about, with a number in it: 1234.\n"


def found(root: Path, include: list[str] | None = None, exclude: list[str] | None = None) -> dict[str, str]:
    """Name → "read", or why not."""
    entries = find_files(root, include or [], exclude or [])
    return {e.name: "read" for e in entries if isinstance(e, Found)} | {
        e.where: e.reason for e in find_files(root, include or [], exclude or []) if isinstance(e, Refusal)
    }


def read(root: Path, out: Path, options: ReadOptions | None = None, benchmarks: Benchmarks | None = None) -> tuple[Reading, dict]:  # type: ignore[type-arg]
    out.mkdir(exist_ok=True)
    with Account(out) as account:
        reading = read_folder(root, out, options or ReadOptions(), account, benchmarks)
    return reading, account.as_dict()


def test_gitignore_as_git_reads_it(tmp_path: Path) -> None:
    """Nested files, negation, folders, anchors; the nearest file that has an opinion decides."""
    names = [
        "a.md",
        "build/b.md",
        "kept.md",
        "deep/a.md",
        "deep/kept.md",
        "deep/build/c.md",
        "deep/x.log.txt",
        "only/here.md",
        "deep/only/here.md",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(TEXT)
    (tmp_path / ".gitignore").write_text("*.md\n!kept.md\nbuild/\n/only/\n")
    (tmp_path / "deep" / ".gitignore").write_text("!a.md\n*.log.txt\n")
    named = "named in .gitignore"
    verdicts = {name: verdict for name, verdict in found(tmp_path).items() if not name.endswith(".gitignore")}
    assert verdicts == {
        "a.md": named,
        "build/": named,
        "kept.md": "read",
        "deep/a.md": "read",
        "deep/kept.md": "read",
        "deep/build/": named,
        "deep/x.log.txt": named,
        "only/": named,
        "deep/only/here.md": named,
    }


def test_globs_and_what_no_reader_knows(tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.py", "sub/d.md", "e.xyz", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    assert found(tmp_path, ["*.md", "LICENSE"], ["sub/", "b.*"]) == {
        "a.md": "read",
        "LICENSE": "read",
        "b.md": "excluded by --exclude",
        "sub/": "excluded by --exclude",
        "c.py": "not named by --include",
        "e.xyz": "not named by --include",
    }
    assert found(tmp_path)["e.xyz"] == "no reader for .xyz"


def test_links_and_devices(tmp_path: Path) -> None:
    (tmp_path / "outside.md").write_text(TEXT)
    root = tmp_path / "root"
    root.mkdir()
    (root / "real.md").write_text(TEXT)
    (root / "inside.md").symlink_to("real.md")
    (root / "out.md").symlink_to("../outside.md")
    (root / "loop").symlink_to(".")
    (root / "self.md").symlink_to("self.md")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe.txt")
    out = "a symbolic link that leads out of the folder; copy the file into it"
    inside = "a symbolic link: its target is read under its own name"
    assert found(root) == {
        "real.md": "read",
        "inside.md": inside,
        "loop": inside,
        "out.md": out,
        "up": out,
        "self.md": "a symbolic link that leads nowhere or to itself",
        "pipe.txt": "not a regular file",
    }


def test_every_format(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.md").write_text(f"---\ntitle: Of A\ndate: 2024-05-01\n---\n# Heading\n\n{TEXT}")
    (root / "b.html").write_text(
        f"<title>Of B</title><nav>menu</nav><h1>Head</h1><p>{TEXT}</p><script>alert(1)</script><style>p{{}}</style>"
    )
    (root / "c.py").write_text(f"def c():\n    '''{TEXT}'''\n")
    (root / "d.txt").write_bytes(("Of D\n\n" + TEXT).encode("utf-16"))
    pq.write_table(pa.table({"name": ["Of E"], "body": [TEXT], "other": [1]}), root / "e.parquet")
    (root / "f.csv").write_text(f'title,description,category\nOf F,"{TEXT.strip()}",Lamps\n')
    (root / "g.jsonl").write_text(json.dumps({"id": 7, "words": TEXT + "and words", "when": "2023-01-01"}) + "\n")
    (root / "h.pdf").write_bytes(make_pdf("The pages of a PDF, long enough for a document about lamps"))
    reading, account = read(root, tmp_path / "out", ReadOptions(columns={"text": "words", "date": "when"}, near=1))
    documents = {document.id.split("#")[0]: document for document in reading.documents()}
    assert {name: document.title for name, document in documents.items()} == {
        "a.md": "Of A",
        "b.html": "Of B",
        "c.py": None,
        "d.txt": "Of D",
        "e.parquet:row group 0, row 1": "Of E",
        "f.csv:2": "Of F",
        "g.jsonl:1": None,
        "h.pdf": None,
    }
    page = documents["b.html"].text
    assert page.startswith("Of B\n\n# Head") and "alert" not in page and "menu" not in page and "p{" not in page
    assert documents["a.md"].date == "2024-05-01" and documents["g.jsonl:1"].date == "2023-01-01" and documents["f.csv:2"].domain == "Lamps"
    assert documents["e.parquet:row group 0, row 1"].text == "Of E\n" + TEXT.strip()
    assert "about lamps" in documents["h.pdf"].text and documents["c.py"].meta == {
        "page": "c.py",
        "part": 0,
        "format": "code",
        "language": "python",
    }
    assert account["files"] == {"came": 8, "used": 8, "left_out": {}} and account["rows"]["used"] == 3
    assert [json.loads(line)["file"] for line in (tmp_path / "out" / "files.jsonl").read_text().splitlines()] == sorted(
        p.name for p in root.iterdir()
    )


def test_cut_at_natural_breaks() -> None:
    code = "\n\n\n".join(f"def f{n}(x):\n    y = x + {n}\n    return y * {n}" for n in range(60))
    parts = list(cut(Page("m.py", "m.py", code, "code", "python"), 600, "python"))
    assert len(parts) > 3 and all(len(part.text) <= 600 for part in parts)
    assert all(part.text.removeprefix("m.py\n\n").startswith("def f") and part.text.endswith(tuple("0123456789")) for part in parts)
    sections = "\n\n".join(f"## Part {n}\n\n{prose(n, 30)}" for n in range(20))
    for part in cut(Page("m.md", "Of M", sections, "markdown"), 600, None):
        assert part.text.startswith("Of M\n\n## Part") and len(part.text) <= 600
    for part in cut(Page("t.txt", "Of T", " ".join(prose(n, 20) for n in range(20)), "text"), 500, None):
        assert part.text.endswith(".") and len(part.text) <= 500
    whole = "".join(p.text.removeprefix("Of M\n\n") for p in cut(Page("m.md", "Of M", sections, "markdown"), 600, None))
    assert "".join(whole.split()) == "".join(sections.split())  # nothing is lost, nothing stands twice


def test_ids_depend_on_place_and_text_alone(tmp_path: Path) -> None:
    def ids(root: Path) -> set[str]:
        return {document.id for document in read(root, tmp_path / "out")[0].documents()}

    root = tmp_path / "root"
    root.mkdir()
    (root / "m.md").write_text("# M\n\n" + "\n\n".join(prose(n, 200) for n in range(10)))
    before = ids(root)
    (root / "a.md").write_text("# A\n\n" + prose(77, 200))
    assert before < ids(root)
    (root / "m.md").write_text((root / "m.md").read_text().replace("# M", "# N"))
    assert not before & ids(root)


def test_near_duplicates() -> None:
    words = prose(1, 300).split()
    changed = [*words[:150], "other", *words[151:]]
    random.Random(0).shuffle(shuffled := list(words))
    known = Duplicates()
    assert known.add("a", " ".join(words)) is None
    assert known.add("b", " ".join(words).upper() + " ") == ("the same text as another", "a")
    reason, detail = known.add("c", " ".join(changed)) or ("", "")
    assert reason == "nearly the same text as another" and detail.startswith("a (similarity 0.9")
    assert known.add("d", " ".join(shuffled)) is None and known.add("e", prose(2, 300)) is None
    assert known.add("f", "two words") is None and known.add("g", "three other words") is None  # shorter than a shingle
    exact = Duplicates(near=1)
    assert exact.add("a", " ".join(words)) is None and exact.add("c", " ".join(changed)) is None


def test_benchmarks_by_runs_of_13_words() -> None:
    question = "Which of the following lamps was first sold in the year that the comet came back to us?"
    known = Benchmarks([question, "Who is it?"])
    assert known.holds("Some words before. " + question + " And after.") and known.holds("who is it")
    assert not known.holds(" ".join(question.split()[:12])) and not known.holds("He asked: who is it then")
    assert not Benchmarks([]).holds(question)


def test_benchmark_documents_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.txt").write_text("Title\n\n" + prose(1))
    (root / "b.txt").write_text("Title\n\n" + prose(2))
    _, account = read(root, tmp_path / "out", benchmarks=Benchmarks([" ".join(prose(1).split()[5:25])]))
    assert account["documents"] == {"came": 2, "used": 1, "left_out": {"shares a run of 13 words with a benchmark": 1}}


def test_what_is_left_out_is_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.md").write_text("# Good\n\n" + TEXT)
    (root / "latin.txt").write_bytes("café and more".encode("latin-1"))
    (root / "short.txt").write_text("hi")
    (root / "none.csv").write_text("a,b\n1,2\n")
    _, account = read(root, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / LEFT_OUT).read_text().splitlines()]
    assert {(row["what"], row["where"], row["reason"], row["by_rule"]) for row in rows} == {
        ("files", "latin.txt", "not UTF-8", False),
        ("files", "none.csv", "no column of text", False),
        ("documents", rows[-1]["where"], "too short to ask about", True),
    }
    assert len(rows) == sum(sum(row["left_out"].values()) for row in account.values())


def test_the_account_must_add_up(tmp_path: Path) -> None:
    with Account(tmp_path) as account:
        account.use("files")
        account.came["files"] += 1
    with pytest.raises(AssertionError, match="2 came, 1 used"):
        account.as_dict()


def test_languages() -> None:
    assert language_of("Der schnelle braune Fuchs springt über den faulen Hund und läuft davon.") == "de"
    assert language_of("The quick brown fox jumps over the lazy dog and runs away.") == "en"
    assert language_of("1234 5678") is None


def units(*names: str, dates: list[str] | None = None, domains: list[str] | None = None) -> list[Unit]:
    return [Unit(name, dates[n] if dates else None, domains[n] if domains else None, 1) for n, name in enumerate(names)]


def test_splits_by_document_keep_their_places_when_the_folder_grows() -> None:
    names = [f"f{n}" for n in range(200)]
    before = split_units(units(*names), "document", 0.2, 0.1, 0)
    after = split_units(units(*names, "new1", "new2"), "document", 0.2, 0.1, 0)
    assert [list(before.values()).count(split) for split in ("test", "validation", "train")] == [40, 20, 140]
    assert sum(before[name] != after[name] for name in names) <= 4
    assert before != split_units(units(*names), "document", 0.2, 0.1, 1)


def test_splits_by_date_and_domain() -> None:
    names = [f"f{n}" for n in range(10)]
    dated = split_units(units(*names, dates=[f"2024-01-{n + 1:02}" for n in range(10)]), "date", 0.2, 0.1, 0)
    assert [name for name, split in dated.items() if split == "test"] == ["f9", "f8"] and dated["f7"] == "validation"
    domains = [f"d{n % 5}" for n in range(10)]
    parted = split_units(units(*names, domains=domains), "domain", 0.2, 0.2, 0)
    for domain in set(domains):
        assert len({parted[name] for name, own in zip(names, domains, strict=True) if own == domain}) == 1
    for by, few, why in (
        ("document", units("a", "b"), "2 pages cannot be"),
        ("domain", units("a", "b", "c", domains=["x"] * 3), "use --split document"),
    ):
        with pytest.raises(UserError, match=why):
            split_units(few, by, 0.2, 0.1, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", sorted(set(CODE.values())))
def test_every_language_of_code_is_cut(language: str) -> None:
    """langchain names more than it can split: one Perl file of two pages ended the build in a traceback."""
    text = "sub area {\n    return 1;\n}\n\n" * 200
    documents = list(cut(Page("tool", None, text, "code", language=language), 2000, None))
    assert len(documents) > 1 and "".join(document.text for document in documents).count("return 1") == 200


def test_a_table_that_breaks_off_says_so(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"title": f"Crane {n}", "text": prose(n)}) + "\n" for n in range(500))
    packed = gzip.compress(rows.encode())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cranes.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    _, account = read(tmp_path / "in", tmp_path / "out", ReadOptions(near=1.0))
    told = account["rows"]
    assert 0 < told["used"] < 500 and told["left_out"] == {"cannot be unpacked": 1}


def test_dates_that_cannot_be_put_in_order_are_refused() -> None:
    units = [Unit(f"{n}", date, ".", 1) for n, date in enumerate(["2024-03-01", "2025-01-30T10:00:00Z", "2025-01-30T08:00:00Z", "2023"])]
    assert split_units(units, "date", 0.25, 0, 0) == {"0": "train", "1": "test", "2": "test", "3": "train"}  # a day stays together
    with pytest.raises(
        UserError, match=r"--split date: 03/14/2024 of 4 is no date that can be put in order \(1 of 5 pages\); write YYYY-MM-DD"
    ):
        split_units([*units, Unit("4", "03/14/2024", ".", 1)], "date", 0.25, 0, 0)
