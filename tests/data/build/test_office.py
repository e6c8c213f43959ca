"""Word, PowerPoint, notebooks and e-books in data build: what they say, and what is said of broken ones."""

from pathlib import Path

import pytest

from data.build.confined import Confined
from data.build.pages import Page, read_pages
from data.build.walk import find_files
from data.records import Refusal
from tests.data.build import office_files as office

ROW = "<w:tr>{}</w:tr>"


def cell(text: str, merge: str = "") -> str:
    merged = f'<w:tcPr><w:vMerge w:val="{merge}"/></w:tcPr>' if merge else ""
    return f"<w:tc>{merged}{office.paragraph(text)}</w:tc>"


WORD = office.docx(
    office.paragraph("Crane handbook", "Title")
    + office.paragraph("Lifting", "heading1")
    + f"<w:p>{office.run('It lifts 10')}{office.run('30', 'superscript')}{office.run(' of H')}{office.run('2', 'subscript')}{office.run('O')}</w:p>"
    + f"<w:tbl>{ROW.format(cell('berth') + cell('tonnes'))}{ROW.format(cell('seven', 'restart') + cell('forty'))}"
    + f"{ROW.format(cell('', 'continue') + cell('fifty'))}</w:tbl>"
)
SLIDES = office.pptx([("Cranes of Port Ebba", "They are old\nThey are heavy"), ("Berths", "Seven of them")])
BOOK = office.ipynb(
    [("markdown", ["# Tides of Port Ebba\n", "High at noon."]), ("code", "def tide():\n    return 3"), ("raw", "x"), ("code", "")]
)
NOVEL = office.epub({"one": "<h1>One</h1><p>The crane lifts 10<sup>3</sup> kg.</p>", "two": "<p>The end of it.</p>"})


def read(folder: Path) -> dict[str, Page | Refusal]:
    with Confined() as confined:
        found = list(find_files(folder, [], []))
        read = [page for one in found for page in ([one] if isinstance(one, Refusal) else read_pages(one, folder, confined, {}))]
    return {page.where if isinstance(page, Refusal) else page.name: page for page in read}


def test_what_they_say(tmp_path: Path) -> None:
    for name, content in {"a.docx": WORD, "b.pptx": SLIDES, "c.ipynb": BOOK, "d.epub": NOVEL}.items():
        (tmp_path / name).write_bytes(content)
    found = read(tmp_path)
    assert {name: page.title for name, page in found.items() if isinstance(page, Page)} == {
        "a.docx": "Crane handbook", "b.pptx": "Cranes of Port Ebba", "c.ipynb": "Tides of Port Ebba", "d.epub": "The port",
    }  # fmt: skip
    texts = {name: page.text for name, page in found.items() if isinstance(page, Page)}
    assert "# Lifting\n\nIt lifts 10³⁰ of H₂O" in texts["a.docx"] and texts["a.docx"].endswith("| seven | forty |\n| seven | fifty |")
    assert texts["b.pptx"] == (
        "## Cranes of Port Ebba\n\nThey are old\nThey are heavy\n\nSay that it is old.\n\n"
        "## Berths\n\nSeven of them\n\n| berth | tonnes |\n| --- | --- |\n| seven | forty |"
    )
    assert texts["c.ipynb"] == "# Tides of Port Ebba\nHigh at noon.\n\n```python\ndef tide():\n    return 3\n```"
    assert texts["d.epub"] == "# One\n\nThe crane lifts 10³ kg.\n\nThe end of it."
    assert found["a.docx"].date == "2024-05-01" and found["d.epub"].date == "1998-03-01"  # type: ignore[union-attr]


def test_a_workbook_sheet_by_sheet(tmp_path: Path) -> None:
    sheets = {
        "Cranes": [["Name", "Text"], ["Big Ebba", "It lifts forty tonnes."]],
        "Notes": [["body"], [12], ["Old."]],
        "Sums": [["n"], [1]],
    }
    (tmp_path / "port.xlsx").write_bytes(office.xlsx(sheets))
    (tmp_path / "one.xlsx").write_bytes(office.xlsx({"A": sheets["Cranes"]}))
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    found = read(tmp_path)
    assert {name: (page.title, page.text) for name, page in found.items() if isinstance(page, Page)} == {
        "one.xlsx:2": ("Big Ebba", "Big Ebba\nIt lifts forty tonnes."),
        "port.xlsx:Cranes!2": ("Big Ebba", "Big Ebba\nIt lifts forty tonnes."),
        "port.xlsx:Notes!2": (None, "12"),
        "port.xlsx:Notes!3": (None, "Old."),
    }
    left = {name: page.reason for name, page in found.items() if isinstance(page, Refusal)}
    assert left["port.xlsx:Sums"].startswith("no column of text (columns: n)") and left["x.xlsx"].startswith("no whole zip archive")


_MATH = "http://schemas.openxmlformats.org/officeDocument/2006/math"


def math(body: str) -> str:
    return f'<m:oMath xmlns:m="{_MATH}">{body}</m:oMath>'


def r(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (math(f"<m:sSup><m:e>{r('10')}</m:e><m:sup>{r('30')}</m:sup></m:sSup>"), "10³⁰"),
        (math(f"<m:sSub><m:e>{r('x')}</m:e><m:sub>{r('max')}</m:sub></m:sSub>{r('=2')}"), "x_max=2"),
        (math(f"<m:f><m:num>{r('a+b')}</m:num><m:den>{r('c')}</m:den></m:f>"), "(a+b)/c"),
        (math(f"<m:rad><m:deg/><m:e>{r('x')}</m:e></m:rad>"), "√(x)"),
        (math(f'<m:nary><m:naryPr><m:chr m:val="∑"/></m:naryPr><m:sub>{r("i=1")}</m:sub><m:sup>{r("n")}</m:sup><m:e>{r("i")}</m:e></m:nary>'), "∑ᵢ₌₁ⁿ i"),
        (math(f"<m:d><m:e>{r('a')}</m:e></m:d>"), "(a)"),
        (math(f"<m:d><m:e>{r('a+')}<m:d><m:dPr><m:begChr m:val='['/><m:endChr m:val=']'/></m:dPr><m:e>{r('b')}</m:e></m:d></m:e></m:d>"), "(a+[b])"),
        (math(f"<m:d><m:e><m:m><m:mr><m:e>{r('1')}</m:e><m:e>{r('2')}</m:e></m:mr><m:mr><m:e>{r('3')}</m:e><m:e>{r('4')}</m:e></m:mr></m:m></m:e></m:d>"), "(1, 2; 3, 4)"),
        (f'<m:oMathPara xmlns:m="{_MATH}">{math(r("E=m"))}{math(r("c"))}</m:oMathPara>', "E=mc"),
    ],
)  # fmt: skip
def test_formulae_of_word(formula: str, text: str, tmp_path: Path) -> None:
    """mammoth leaves them out without a word."""
    (tmp_path / "a.docx").write_bytes(office.docx(f"<w:p><w:r><w:t>It is </w:t></w:r>{formula}<w:r><w:t> here.</w:t></w:r></w:p>"))
    page = read(tmp_path)["a.docx"]
    assert isinstance(page, Page) and page.text == f"It is {text} here."


def test_formulae_of_powerpoint(tmp_path: Path) -> None:
    """A shape with one stands in an alternative, which python-pptx passes over with all of its text; so does a formula among runs."""
    from lxml import etree
    from pptx import Presentation

    drawing, compatible = (
        "http://schemas.microsoft.com/office/drawing/2010/main",
        "http://schemas.openxmlformats.org/markup-compatibility/2006",
    )
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text_frame.text = "Energy", "The rest energy is "
    slide.placeholders[1].text_frame.paragraphs[0]._p.append(etree.fromstring(f'<a14:m xmlns:a14="{drawing}">{math(r("E=mc²"))}</a14:m>'))
    box = slide.shapes.add_textbox(0, 0, 100, 100)
    box.text_frame.text = "Einstein derived it in Bern."
    alternative = etree.fromstring(
        f'<mc:AlternateContent xmlns:mc="{compatible}"><mc:Choice xmlns:a14="{drawing}" Requires="a14"/><mc:Fallback/></mc:AlternateContent>'
    )
    box._element.getparent().replace(box._element, alternative)
    alternative[0].append(box._element)
    deck.save(tmp_path / "a.pptx")
    page = read(tmp_path)["a.pptx"]
    assert isinstance(page, Page) and page.text == "## Energy\n\nThe rest energy is E=mc²\n\nEinstein derived it in Bern."


BOMB = bytearray(office.zipped({"word/document.xml": b"0"}))
BOMB[BOMB.index(b"PK\x01\x02") + 24 : BOMB.index(b"PK\x01\x02") + 28] = (600 << 20).to_bytes(4, "little")  # as its table of contents says
LOCKED = office.zipped(
    {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="b.opf"/></rootfiles></container>',
        "META-INF/encryption.xml": '<encryption><CipherReference URI="a.xhtml"/></encryption>',
        "b.opf": '<package><manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="a"/></spine></package>',
        "a.xhtml": b"\x00\x01",
    }
)


def test_broken_ones(tmp_path: Path) -> None:
    cases: list[tuple[str, bytes | bytearray, str]] = [
        ("a.docx", WORD[:-200], "no whole zip archive (cut off, or another kind of file)"),
        ("b.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted, or of an old kind under a new name; save it anew without a password"),
        ("c.docx", SLIDES, "not a readable DOCX: "),
        ("d.docx", BOMB, "unpacks to more than 512 MB or 20,000 parts (a zip bomb?)"),
        ("e.docx", office.docx(""), "no text in it"),
        ("f.pptx", WORD, "not a readable PPTX: "),
        ("g.pptx", b"no zip", "no whole zip archive (cut off, or another kind of file)"),
        ("h.ipynb", BOOK[:-9], "not a notebook"),
        ("i.ipynb", b'{"worksheets": []}', "of Jupyter before 2015; open and save it once"),
        ("j.ipynb", b"[1, 2]", "not a notebook"),
        ("k.epub", office.zipped({"mimetype": "application/epub+zip"}), "not a readable EPUB: "),
        ("l.epub", LOCKED, "locked against copying (DRM)"),
        ("m.xls", b"\xd0\xcf\x11\xe0", "no reader for .xls; save it as .xlsx"),
        ("n.doc", b"\xd0\xcf\x11\xe0", "no reader for .doc; save it as .docx"),
    ]
    for name, content, _ in cases:
        (tmp_path / name).write_bytes(content)
    found = read(tmp_path)
    for name, _, reason in cases:
        one = found[name]
        assert isinstance(one, Refusal) and one.reason.startswith(reason), one
