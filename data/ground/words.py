"""Words of any script: the one normalisation and the one splitter, behind scores, overlap, near-duplicates, the build's rules and places.

NFKC and full case folding (`Straße` is `STRASSE`, `１９` and `१९` are `19`), zero-width characters gone, marks with their letters (a Hindi vowel sign ends
no word). Scripts that put no spaces between words (Chinese, Japanese, Thai, …) are split into their characters, as CMRC 2018 and JSQuAD score them:
a dictionary would decide otherwise about the same text from release to release. Korean has spaces and is split at them.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil

import regex

_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}"
)
_LETTER = rf"[[{_UNSPACED}]--[\p{{M}}\p{{Nd}}\p{{P}}\p{{S}}]]"
_FIRST_UNSPACED = "\u0e00"
_HIDDEN = r"[[\p{Cf}\uFE00-\uFE0F]--[\u200B]]"
_CHARACTER = regex.compile(rf"(?V1){_LETTER}\p{{M}}*+")
"""A character of a script without spaces, with its marks; digits of these scripts make numbers as all digits do."""
_TOKEN = regex.compile(rf"(?V1){_LETTER}\p{{M}}*+|[[[^\p{{P}}\p{{Z}}\p{{C}}]{_HIDDEN}]--{_LETTER}]+")
"""A word of `normalise` in a text as it is written."""
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
TOKENS_A_WORD, BYTES_A_TOKEN = 1.4, 4
"""Of ASCII by words, of everything else by bytes of UTF-8: Russian half a token a letter, Chinese and Hindi ¾ a character."""


class _Seen(dict[int, int | str | None]):
    """Joiners, soft hyphens, marks of direction and variation → nothing: nobody sees them. U+200B is a space between words, if a narrow one.
    Digits of every script → ASCII's: १९९८ and ١٩٩٨ are 1998."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        hidden = (category == "Cf" and code != 0x200B) or 0xFE00 <= code <= 0xFE0F
        self[code] = None if hidden else str(unicodedata.decimal(chr(code))) if category == "Nd" else code
        return self[code]


class _Squeeze(dict[int, int]):
    """Punctuation, spaces and controls → one space."""

    def __missing__(self, code: int) -> int:
        self[code] = 32 if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_SEEN, _SQUEEZE = _Seen(), _Squeeze()  # looked up once a character


def fold(text: str) -> str:
    """NFKC, case folded, zero-width characters gone; on ASCII the same as lower()."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_SEEN)
    return folded.replace("i\u0307", "i")  # İstanbul, which case folding alone makes no istanbul


def apart(folded: str) -> str:
    """Characters of scripts without spaces with a space around each; everything else as it is."""
    return _CHARACTER.sub(r" \g<0> ", folded) if max(folded, default="") >= _FIRST_UNSPACED else folded


def normalise(text: str) -> str:
    """Words with single spaces between them: what counts as the same text when train and exam are compared.

    Symbols and accents stay: "C++" is not "C". A text of nothing but punctuation stays as it is.
    """
    folded = fold(text)
    return " ".join(apart(folded.translate(_SQUEEZE)).split()) or folded.strip()


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, folded: on ASCII exactly what package rouge-score counts."""
    return _WORD.findall(apart(fold(text)))


def holds(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text, as whole words; both `normalise`d."""
    return f" {phrase} " in f" {text} "


def pieces(normalised: str) -> list[str]:
    """Words to count shared ones by. A single character says little, so runs of them count as pairs: 灯台守 → 灯台, 台守."""
    found: list[str] = []
    run: list[str] = []
    for word in [*normalised.split(), ""]:
        if _CHARACTER.fullmatch(word):
            run.append(word)
            continue
        found += [a + b for a, b in pairwise(run)] or run
        run = []
        found += [word] if word else []
    return found


def spans(text: str, phrases: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where one of the phrases stands in a text, as whole words after folding: (start, end) in the text as it is written, no two overlapping."""
    wanted = sorted(filter(None, (_folded_words(phrase) for phrase in phrases)), key=len, reverse=True)
    if not wanted:
        return
    tokens = [(word, *match.span()) for match in _TOKEN.finditer(text) for word in _words_of(match[0])]
    said, at = [word for word, _, _ in tokens], 0
    while at < len(said):
        phrase = next((p for p in wanted if said[at : at + len(p)] == p), None)
        if phrase is None:
            at += 1
            continue
        yield tokens[at][1], tokens[at + len(phrase) - 1][2]
        at += len(phrase)


def swap(text: str, phrases: Iterable[str], other: str) -> str | None:
    """`text` with `other` in the place of every phrase in it; None where none stands in it as whole words."""
    made, at = "", 0
    for start, end in spans(text, phrases):
        made, at = made + text[at:start] + other, end
    return made + text[at:] if at else None


def first_span(text: str, phrases: Sequence[str]) -> tuple[int, int] | None:
    return next(spans(text, phrases), None)


def _folded_words(phrase: str) -> list[str]:
    return [word for match in _TOKEN.finditer(phrase) for word in _words_of(match[0])]


@lru_cache(maxsize=2**16)
def _words_of(token: str) -> list[str]:
    return normalise(token).split()


def tokens_estimated(text: str) -> int:
    """Of a text that no tokenizer is at hand for."""
    ascii_only = text.encode("ascii", "ignore")
    return ceil(TOKENS_A_WORD * len(ascii_only.split()) + (len(text.encode("utf-8", "surrogatepass")) - len(ascii_only)) / BYTES_A_TOKEN)
