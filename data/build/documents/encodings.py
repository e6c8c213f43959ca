"""Which encoding a page's label means to every browser: the Encoding Standard's table (encoding.spec.whatwg.org), as names of Python's codecs.

Labels are older than the encodings that are written under them: `iso-8859-1` is windows-1252, `gb2312` is GBK, `utf-16` in a page that could be
read so far is UTF-8. Labels that Python and the standard read alike are not listed.
"""

import codecs
import re

_NAMES = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf-16 utf-16le utf-16be utf16 unicode ucs-2",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 "
    "us-ascii windows-1252 x-cp1252 x-user-defined",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i iso-ir-138 iso8859-8 iso88598 logical visual",
    "koi8-u": "koi8-ru koi8-u",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "cp866": "866 cp866 csibm866 ibm866",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022-jp": "csiso2022jp iso-2022-jp",
}  # fmt: skip
_BY_LABEL = {label: name for name, labels in _NAMES.items() for label in labels.split()}
_REFUSED = ("hz-gb-2312", "iso-2022-cn", "iso-2022-kr", "utf-7", "utf-32")
"""The standard reads them as nothing, or not at all: text that hides markup."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def codec_of(label: str) -> str | None:
    """The codec that a label means; None where it means none."""
    plain = label.strip().lower()
    if plain in _BY_LABEL:
        return _BY_LABEL[plain]
    if not re.fullmatch(r"(?:iso|windows|cp|koi|mac|euc|x-mac)[-_a-z0-9]*", plain) or plain in _REFUSED:
        return None
    try:
        return codecs.lookup(plain).name
    except LookupError:
        return None


def decode(content: bytes, label: str | None) -> str:
    """A page's bytes by their mark, else by the label in the page, else as UTF-8; never by a guess, of which come texts of wrong letters.

    Raises LookupError for a label that means nothing, UnicodeDecodeError (with the codec's name) where the bytes are not what it says.
    """
    for mark, marked in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(marked)
    codec = codec_of(label) if label else "utf-8"
    if codec is None:
        raise LookupError(label)
    # Five bytes of windows-1252 (and some of its sisters) mean no letter: the standard reads them as the controls of their numbers.
    return content.decode(codec, _CONTROLS if codec.startswith("cp125") or codec == "cp874" else "strict")


def _as_controls(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(map(chr, error.object[error.start : error.end])), error.end


_CONTROLS = "studyhall.controls"
codecs.register_error(_CONTROLS, _as_controls)
