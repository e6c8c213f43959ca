"""Formulae of Word as they read, for mammoth knows none and would leave them out: 10³⁰, (a+b)/c, √(x), ∑ᵢ₌₁ⁿ x."""

import io
import zipfile
from typing import Any

from data.build.documents.markup import lowered, raised

_BODY = "word/document.xml"
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_VALUE = "{http://schemas.openxmlformats.org/officeDocument/2006/math}val"


def formulae_written_out(archive: zipfile.ZipFile) -> io.BytesIO | None:
    """The document with a run of text in the place of each formula, without its pictures; None where it has no formula."""
    from lxml import etree

    if _BODY not in archive.namelist() or b"oMath" not in (content := archive.read(_BODY)):
        return None
    root = etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))
    for formula in [*root.iter("{*}oMathPara"), *root.iter("{*}oMath")]:
        if formula.getparent() is None or any(above.tag.endswith("}oMathPara") for above in formula.iterancestors()):
            continue
        run = etree.Element(f"{_WORD}r")
        etree.SubElement(run, f"{_WORD}t", {"{http://www.w3.org/XML/1998/namespace}space": "preserve"}).text = written(formula)
        run.tail = formula.tail
        formula.getparent().replace(formula, run)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as copy:
        for name in archive.namelist():
            if name != _BODY and "/media/" not in name:
                copy.writestr(name, archive.read(name))
        copy.writestr(_BODY, etree.tostring(root, xml_declaration=True, encoding="UTF-8"))
    made.seek(0)
    return made


def written(element: Any) -> str:
    """A formula of Office MathML on one line."""
    kind = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "Pr"
    if kind == "t":
        return element.text or ""
    if kind.endswith("Pr"):  # properties
        return ""
    parts = [(child.tag.rpartition("}")[2], written(child)) for child in element if isinstance(child.tag, str)]
    of = dict(parts)
    scripts = lowered(of.get("sub", "")) + raised(of.get("sup", ""))
    if kind in ("sSup", "sSub", "sSubSup"):
        return of.get("e", "") + scripts
    if kind == "f":
        return "/".join(f"({of[part]})" if len(of.get(part, "")) > 1 else of.get(part, "") for part in ("num", "den"))
    if kind == "rad":
        return f"{raised(of.get('deg', ''))}√({of.get('e', '')})"
    if kind == "nary":
        return f"{_said(element, 'chr', '∫')}{scripts} {of.get('e', '')}"
    if kind == "d":
        inside = _said(element, "sepChr", "|").join(text for name, text in parts if name == "e")
        return f"{_said(element, 'begChr', '(')}{inside}{_said(element, 'endChr', ')')}"
    if kind in ("m", "eqArr"):  # a matrix by rows; cases one after the other
        return "; ".join(text for name, text in parts if name in ("mr", "e"))
    if kind == "mr":
        return ", ".join(text for name, text in parts if name == "e")
    return "".join(text for _, text in parts)


def _said(element: Any, name: str, usual: str) -> str:
    found = element.find(f"{{*}}{element.tag.rpartition('}')[2]}Pr/{{*}}{name}")  # its own: a formula within may say another
    return str(found.get(_VALUE, "")) if found is not None else usual
