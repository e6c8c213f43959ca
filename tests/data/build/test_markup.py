"""Pages as the web has them → Markdown that says what the page says."""

import pytest

from data.build.documents.encodings import codec_of
from data.build.documents.extract import extract
from data.build.documents.markup import page
from data.build.making.chunks import cut
from data.build.pages import Page

TEXT = "The crane at berth seven lifts forty tonnes and was installed in 1998 by the firm Holt and Daughters."


def text_of(html: str | bytes) -> str:
    return str(page(html if isinstance(html, bytes) else html.encode())["text"]).strip()


@pytest.mark.parametrize(
    ("html", "text"),
    [
        (f"<form><input type=hidden value=x><p>{TEXT}</p><label for=n>Name</label><button>Go</button></form>", TEXT),
        (f"<nav><p>{TEXT}</p>", TEXT),  # never closed: all of the page stands in it
        (f"<aside><p>{TEXT}</p></aside>", TEXT),
        (f"<body><noscript><p>{TEXT} {TEXT}</p></noscript><div id=root></div>", f"{TEXT} {TEXT}"),
        ("<body><noscript>You need to enable JavaScript to run this app.</noscript><div id=root></div>", ""),
        (f"<nav>Home Docs</nav><p>{TEXT}</p><footer>© Port</footer><aside>More</aside>", TEXT),  # the twin: menus go
        (f"<article><p>{TEXT}</p><aside>Note: at low tide.</aside></article>", f"{TEXT}\n\nNote: at low tide."),
        (f"<template shadowrootmode=open><p>{TEXT}</p></template><template>unused</template>", TEXT),
        (f"<p>{TEXT}</p></body></html><p>More of it.</p>", f"{TEXT}\n\nMore of it."),
        ("<ul><li>one<li>two</ul>", "* one\n* two"),
        ("<p>so\u00adft and ze\u200bro</p>", "soft and zero"),
        ("<p>snake_case 5 * 3 = 15 [x](y) #1</p>", "snake_case 5 * 3 = 15 [x](y) #1"),
        ("<pre>    def f(self):\n        return 1</pre>", "```\n    def f(self):\n        return 1\n```"),
        ("<pre>a\n```\nb</pre>", "````\na\n```\nb\n````"),
    ],
)
def test_what_a_page_holds(html: str, text: str) -> None:
    assert text_of(html) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("10<sup>30</sup>", "10³⁰"),
        ("H<sub>2</sub>O", "H₂O"),
        ("5 m<sup>−3</sup>", "5 m⁻³"),
        ("SO<sub>4</sub><sup>2−</sup>", "SO₄²⁻"),
        ("x<sup>n+1</sup>", "xⁿ⁺¹"),
        ("x<sub>max</sub>", "x_max"),
        ("e<sup>iπ</sup>", "e^(iπ)"),
        ("2<sup>k</sup>", "2^k"),
        ("the 7<sup>th</sup> day", "the 7th day"),
        ("in 1911<sup><a href='#n1'>1</a></sup>", "in 1911[1]"),  # not the year 19111, nor 1911 to the power of 1
        ("so<sup>[2]</sup>", "so[2]"),
        ("<math><msup><mn>10</mn><mn>30</mn></msup><msub><mi>x</mi><mn>1</mn></msub></math>", "10³⁰x₁"),
        ("<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "1/2"),
        ("<math alttext='10^{30}'><msup><mn>10</mn><mn>30</mn></msup></math>", "$10^{30}$"),
        (
            "<span class=katex><math><mn>1</mn><annotation encoding='application/x-tex'>a_1</annotation></math><span class=katex-html>a1</span></span>",
            "$a_1$",
        ),
        ("<ruby>東京<rp>(</rp><rt>とうきょう</rt><rp>)</rp></ruby>都", "東京都"),
    ],
)
def test_exponents_and_indices(html: str, text: str) -> None:
    assert text_of(f"<p>{html}</p>") == text


def test_a_heading_without_its_permalink() -> None:
    made = page(b"<h1>H<sub>2</sub>O of Port Ebba<a class=headerlink href='#x'>\xc2\xb6</a></h1><p>Text <a href='x'>there</a>.")
    assert made["heading"] == "H₂O of Port Ebba" and made["text"].strip() == "# H₂O of Port Ebba\n\nText there."


def test_cells_over_several_rows_stand_in_each() -> None:
    table = "<table><tr><th>berth<th>day<th>tonnes<tr><td rowspan=2>seven<td>Monday<td rowspan=3>forty<tr><td>Tuesday<tr><td>eight<td>Monday</table>"
    assert text_of(table).split("\n")[2:] == ["| seven | Monday | forty |", "| seven | Tuesday | forty |", "| eight | Monday | forty |"]
    both = "<table><tr><th rowspan=2>year<th colspan=2>tonnes<tr><th>in<th>out<tr><td>1998<td>4<td>5</table>"
    assert [row.count("|") for row in text_of(both).split("\n")] == [4, 4, 4, 4] and "| year | in | out |" in text_of(both)
    huge = f"<table><tr><td rowspan=60000>{'x' * 5000}<td>1" + "<tr><td>2" * 50 + "</table>"
    assert text_of(huge).count("x" * 5000) == 1 and "|  | 2 |" in text_of(huge)


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("iso-8859-1", b"Orla\x92s \x93pier\x94 5 \x80", "Orla’s “pier” 5 €"),
        ("us-ascii", b"caf\xe9", "café"),
        ("latin1", b"a\x81b", "a\x81b"),  # means nothing: a control, as the standard has it
        ("iso-8859-9", b"\xfeu \x80", "şu €"),
        ("gb2312", "朱镕基".encode("gb18030"), "朱镕基"),
        ("ks_c_5601-1987", "똠방각하".encode("cp949"), "똠방각하"),
        ("shift_jis", "①髙".encode("cp932"), "①髙"),
        ("big5", "着".encode("big5hkscs"), "着"),
        ("utf-16", "é".encode(), "é"),  # a label that was read is not in UTF-16
        ("iso-8859-2", "łódź".encode("iso-8859-2"), "łódź"),
        ("koi8-r", "привет".encode("koi8-r"), "привет"),
        ("windows-1251", "привет".encode("cp1251"), "привет"),
    ],
)
def test_labels_mean_what_browsers_take_them_for(label: str, content: bytes, text: str) -> None:
    assert text_of(f'<meta charset="{label}"><p>'.encode() + content) == text
    old = f'<meta http-equiv="Content-Type" content="text/html; charset={label}"><p>'.encode() + content
    assert text_of(old) == text


def test_marks_win_and_lies_are_refused() -> None:
    assert text_of(b"\xef\xbb\xbf<meta charset=latin1><p>" + "é".encode()) == "é"
    assert text_of(b"\xff\xfe" + "<p>é".encode("utf-16-le")) == "é" and text_of(b"\xfe\xff" + "<p>é".encode("utf-16-be")) == "é"
    for label in ("hz-gb-2312", "utf-7", "iso-2022-kr", "rot13", "zip", "nonsense"):
        assert codec_of(label) is None, label
    with pytest.raises(UnicodeDecodeError, match="utf-8"):
        text_of(b"<p>caf\xe9")  # no label: no guess
    with pytest.raises(LookupError):
        text_of(b"<meta charset=x-nonsense><p>x")


def test_what_a_person_reads_of_an_unreadable_page(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.html").write_bytes(b"<meta charset=euc-kr><p>\xff\xff")
    (tmp_path / "b.html").write_bytes(b"<meta charset=hz-gb-2312><p>x")
    assert extract("html", str(tmp_path / "a.html"))["error"] == "not CP949 at byte 25; save it as UTF-8"
    assert extract("html", str(tmp_path / "b.html"))["error"] == "an encoding that nobody knows: 'hz-gb-2312'"


# --- cutting --------------------------------------------------------------------------------------------------------


def parts(text: str, characters: int, format: str = "markdown", language: str | None = None) -> list[str]:
    return [document.text for document in cut(Page("m", None if format == "code" else "T", text, format, language), characters, language)]


def test_fences_stay_whole() -> None:
    sections = [
        f"## S{n}\n\nSome words about {n}.\n\n```python\n# of {n}\ndef f{n}():\n\n    return {n}\n```\n\nAfter {n}." for n in range(9)
    ]
    made = parts("# T\n\n" + "\n\n".join(sections), 260)
    assert len(made) == 3 and all(part.count("```") % 2 == 0 for part in made)
    for n in range(9):
        assert sum(f"# of {n}\ndef f{n}():\n\n    return {n}\n```" in part for part in made) == 1
    nested = parts("# T\n\n" + "words " * 30 + "\n\n````md\n```py\nx\n```\n" + "y\n" * 40 + "````\n\n" + "tail " * 30, 300)
    assert sum("````md\n```py\nx\n```\n" in part and part.count("````") == 2 for part in nested) == 1


def test_a_fence_longer_than_a_part_becomes_several() -> None:
    long = "# T\n\nx\n\n```python\n" + "\n".join(f"    line_{n} = {n}" for n in range(100)) + "\n```\n\ntail"
    made = parts(long, 400)
    assert len(made) > 3 and all(len(part) <= 400 and part.count("```") == 2 for part in made)
    assert all("```python\n    line_" in part for part in made)  # the first line's indentation too
    lines = [line for part in made for line in part.split("\n") if "line_" in line]
    assert lines == [f"    line_{n} = {n}" for n in range(100)]


def test_a_fence_that_is_never_closed_is_closed_in_every_part() -> None:
    made = parts("# T\n\nx\n\n  ~~~sh\n" + "\n".join(f"echo {n}" for n in range(200)), 300)
    assert len(made) > 3 and all(part.count("~~~") == 2 for part in made[1:]) and made[0] == "# T\n\nx"


def test_a_method_keeps_its_first_indentation() -> None:
    code = "class A:\n" + "\n\n".join(f"    def m{n}(self):\n        x = {n}\n        return x" for n in range(30))
    made = [part.removeprefix("m\n\n") for part in parts(code, 300, "code", "python")]
    assert len(made) > 3 and all(part.startswith(("    def m", "class A:")) for part in made)
    assert "\n\n".join(made) == code


APART = "main header address figure fieldset legend details summary dialog hgroup center form menu search"


@pytest.mark.parametrize("tag", APART.split())
def test_what_browsers_set_apart_does_not_run_together(tag: str) -> None:
    text = text_of(f"<p>They lift.</p><{tag}>the crane</{tag}><{tag}>the tide</{tag}>high")
    assert text.split() == ["They", "lift.", "the", "crane", "the", "tide", "high"]
    assert text_of("<b>the crane</b>s") == "**the crane**s", "the twin: what is inline stays in its word"


def test_tables_of_a_pages_design_are_no_tables() -> None:
    page_in_cells = "<table><tr><td><h1>Cranes</h1><p>They lift.</p><p>They turn.</p></td><td>Berths</td></tr></table>"
    assert text_of(page_in_cells) == "# Cranes\n\nThey lift.\n\nThey turn.\n\nBerths"
    inner = "<table><tr><td>seven</td><td>forty</td></tr></table>"
    assert text_of(f"<table><tr><td>{inner}</td></tr></table>") == text_of(inner) == "|  |  |\n| --- | --- |\n| seven | forty |"
    assert text_of(f"<table><tr><th>berth</th></tr><tr><td>{inner}</td></tr></table>") == "| berth |\n| --- |\n| seven  forty |"
    assert text_of('<table role="presentation"><tr><td>seven</td></tr></table>') == "seven"


def test_what_is_hidden_is_left_out_unless_it_is_the_page() -> None:
    seen = "<p>The crane lifts forty tonnes, the tide is high at noon.</p>"
    for hidden in ("<p hidden>Accept all</p>", '<div style="color: red; display: none">Accept all</div>'):
        assert text_of(seen + hidden) == text_of(seen)
    assert text_of(f'<div style="display:none">{seen}</div>') == text_of(seen), "shown by a script"
    assert "Accept" in text_of(seen + '<p hidden="until-found">Accept all</p>')
