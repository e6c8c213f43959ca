"""What a text is about, where the text itself says so: its title, or None. A wrong one heads every document, is what the generator is told
to ask about, and decides which questions stay; so a file's name, a program's, or a line that merely comes first is none."""

import datetime
import html
import re
import tomllib
from typing import Any

import yaml

LONGEST = 120
"""Characters."""
_LONGEST_MATTER = 1 << 16
_FRONT_MATTER = re.compile(r"\A(?:---[ \t]*\n(?P<yaml>.*?)\n(?:---|\.\.\.)|\+\+\+[ \t]*\n(?P<toml>.*?)\n\+\+\+)[ \t]*(?:\n|\Z)", re.DOTALL)
FENCE = re.compile(
    r"^[ \t]*(?P<mark>`{3,}|~{3,})[^\n`]*\n(?:.*?\n)??[ \t]*(?P=mark)[`~]*[ \t]*$|^[ \t]*(?:`{3,}|~{3,})[^\n`]*\n.*\Z",
    re.MULTILINE | re.DOTALL,
)
"""A block of code in Markdown; one that is never closed goes to the end."""
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADING = re.compile(
    r"^ {0,3}(?P<mark>\#{1,2})[ \t]+(?P<title>.+?)[ \t]*\#*[ \t]*$"
    r"|^ {0,3}<h(?P<level>[12])\b[^>\n]*>(?P<inner>[^\n]+?)</h(?P=level)>"
    r"|(?:\A|(?<=\n\n))(?P<above>(?! {4}|[ \t]*[-*+>|#])[^\n]*\w[^\n]*)\n {0,3}(?P<under>=+|-{3,})[ \t]*$",
    re.MULTILINE,
)
_MARKUP = re.compile(
    r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|\[\^\w+\]|\[([^\]]*)\]\([^)]*\)|\\(?=[!-/:-@\[-`{-~])|\{#[^}]*\}|<[^>]{1,80}>|(\*\*|__|`)"
)
_PROGRAM = re.compile(
    r"^(?:Microsoft|Adobe|LibreOffice|OpenOffice)?[- ]*(?:Word|PowerPoint|Excel|Writer|Impress|Photoshop|InDesign)\s+-\s+", re.I
)
_FILE_NAME = re.compile(
    r"[^\n]*\.(?:docx?|dotx?|pptx?|xlsx?|od[tps]|rtf|pdf|indd|qxd|dvi|tex|ps|txt|md|markdown|html?|aspx?|php|jsp|xml|json|jsonl|csv|tsv|parquet|py"
    r"|ipynb|epub|pages|key|tmp|png|jpe?g)(?:#\w+)?",
    re.I,
)
_SAYS_NOTHING = re.compile(
    r"(?:untitled|unnamed|no title|none|null|title|page title|document|new document|home ?page|home|index|start|welcome|default|blank|main|readme"
    r"|powerpoint[- ]presentation|presentation|slide|page|chapter|section|part|introduction|abstract|overview|summary|contents|table of contents"
    r"|about|draft|confidential|copyright|note|notes|layout|print|output|scan|scanned|microsoft (?:word|powerpoint|excel)|adobe \w+"
    r"|(?:pdf|xe|lua)?(?:la)?tex(?: with hyperref(?: package)?|[- ][\d.]+)?|react app|vite(?: app| \+ .*)?|insert title here|new|web"
    r"|title of the document|new tab|sheet"
    r"|(?:neues )?dokument|unbenannt(?:es dokument)?|ohne titel|kapitel|abschnitt|seite|teil|einleitung|zusammenfassung|inhalt(?:sverzeichnis)?|startseite"
    r"|tabelle|folie|(?:powerpoint-)?präsentation|(?:document )?sans (?:titre|nom)|chapitre|sommaire|accueil|feuil|présentation powerpoint"
    r"|(?:documento )?(?:sin|sem|senza) (?:título|titolo|nombre|nome)|documento|capítulo|capitolo|índice|indice|inicio|início|hoja|planilha|foglio"
    r"|без (?:названия|имени)|документ|глава|содержание|оглавление|введение|лист|главная|презентация powerpoint"
    r"|शीर्षकहीन|अध्याय|विषय[ -]?सूची|제목 없음|목차|제 ?\d+ ?장|新規文書|無題(?:のドキュメント)?|目次|はじめに|タイトルなし|名称未設定"
    r"|无标题(?:文档)?|無標題|未命名(?:文档)?|新建(?: ?Microsoft Word ?)?文档|目录|目錄|首页|第 ?[\d一二三四五六七八九十百〇]+ ?[章节節部篇回页頁]"
    r")(?:[ -]?(?:document|page|title|slide|presentation|\d+|[ivxlc]+))*(?: of \d+)?[.:]?",
    re.I,
)
"""What programs call a text that nobody has named, and the parts of any text; in the languages that people bring."""
_NUMBERED = re.compile(r"(?:\d+(?:\.\d+)*[.)]?|[IVXLC]+[.)]|[-*•–—]) +")
_NO_NAME = re.compile(
    r"https?://\S+|www\.\S+|(?:img|dsc[fn]?|scan|screenshot|image|photo|doc|pxl)[-_ ]?\d[\d\-_ ]*|.*(?:\{\{.*\}\}|\{%.*%\}|<%.*%>|\$\{.*\}|%[A-Z_]{3,}%).*",
    re.I,
)
"""An address, a camera's or a scanner's file, a template's hole: no title wherever it stands."""
_ENDS = tuple(".!?:;,…。！？：；，、।॥؟؛۔{}=\\")
_UNDERLINE = re.compile(r"[=\-~*_]{3,}")
_PROGRAM_TEXT = re.compile(
    r"#!|@|\[|[-*+•] |<[?!]|[-=*_#/\\;%]{2,}|SELECT |\d{4}-\d\d-\d\d|\d\d?:\d\d"
    r"|(?:From|To|Cc|Date|Subject|Received|Return-Path|Message-ID|MIME-Version|Content-Type): "
    r"|(?:import|from|include|package|using|def|class|function)\b[^.]*[({;:]?$"
)
"""How a line of a program, a log or a letter begins."""


def title_of(text: Any, declared: bool = False) -> str | None:
    """A title on one line; None where it names a file, a program or nothing.

    declared: a person has put it in the place of a title (a table's column, front matter), so that "300" and "Home" are films.
    """
    if not isinstance(text, str):
        return None
    title = _PROGRAM.sub("", " ".join(text.split()))
    if not title or _FILE_NAME.fullmatch(title) or _NO_NAME.fullmatch(title):
        return None
    if not declared and (_SAYS_NOTHING.fullmatch(_NUMBERED.sub("", title, count=1)) or not any(c.isalpha() for c in title)):
        return None
    return title if len(title) <= LONGEST else title[:LONGEST].rsplit(" ", 1)[0]


def front_matter(text: str) -> tuple[dict[str, str], str]:
    """(its texts by key in lower case, the text behind it). What is no mapping in YAML (or TOML) is no front matter: it stays in the text.

    Texts as they stand there: `2024-05-01` is no date, `no` no truth value. A list of texts: its first.
    """
    found = _FRONT_MATTER.match(text)
    if not found or len(found[0]) > _LONGEST_MATTER:
        return {}, text
    try:
        known = _of_yaml(found["yaml"]) if found["yaml"] is not None else _of_toml(found["toml"])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}, text
    if known is None:
        return {}, text
    return {key.lower(): value.strip() for key, value in known.items() if value.strip() not in ("", "~", "null")}, text[found.end() :]


def _of_yaml(text: str) -> dict[str, str] | None:
    """From the nodes, before anything is made of them; None where it is no mapping."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        return None
    firsts = {
        key.value: value.value[0] if isinstance(value, yaml.SequenceNode) and value.value else value
        for key, value in node.value
        if isinstance(key, yaml.ScalarNode)
    }
    return {key: node.value for key, node in firsts.items() if isinstance(node, yaml.ScalarNode)}


def _of_toml(text: str) -> dict[str, str]:
    firsts = {key: value[0] if isinstance(value, list) and value else value for key, value in tomllib.loads(text).items()}
    return {key: str(value) for key, value in firsts.items() if isinstance(value, str | datetime.date)}


def markdown_title(text: str) -> str | None:
    """Its first heading of the first level; without one the only heading of the second, for several are sections.
    A comment in a block of code is no heading."""
    prose = _COMMENT.sub("", FENCE.sub("", text))
    levels: dict[bool, list[str | None]] = {True: [], False: []}
    for found in _HEADING.finditer(prose):
        first = found["mark"] == "#" or found["level"] == "1" or (found["under"] or "").startswith("=")
        levels[first].append(title_of(html.unescape(_MARKUP.sub(r"\1", found["title"] or found["inner"] or found["above"]))))
    named = [title for title in levels[True] if title]
    return named[0] if named else levels[False][0] if len(levels[False]) == 1 else None


def text_title(text: str) -> str | None:
    """The first line of plain text, where it stands alone – before an empty line, an underline, or one long paragraph – and ends as no
    sentence does."""
    first, _, rest = text.strip().partition("\n")
    first, (following, _, after) = first.strip(), rest.partition("\n")
    alone = bool(rest.strip()) and (not following.strip() or len(following) > LONGEST)
    underlined = bool(_UNDERLINE.fullmatch(following.strip())) and bool(after.strip())
    if not (alone or underlined) or len(first) > LONGEST or first.endswith(_ENDS) or _PROGRAM_TEXT.match(first):
        return None
    return title_of(first.strip("*_ "))
