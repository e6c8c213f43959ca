"""One normalisation and one splitter for words of every script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.ground.words import first_span, fold, normalise, pieces, spans, tokens_estimated, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße", ["strasse"]),
        ("１９１１年", ["1911", "年"]),  # full-width digits
        ("१९११ ١٩١١ ๑๙", ["1911", "1911", "19"]),  # digits of any script
        ("İstanbul", ["istanbul"]),
        ("東京港の灯台", ["東", "京", "港", "の", "灯", "台"]),
        ("タワー々〇", ["タ", "ワ", "ー", "々", "〇"]),  # the long vowel's mark belongs to no script
        ("iPhone12を買う", ["iphone12", "を", "買", "う"]),
        ("हिन्दी में कि", ["हिन्दी", "में", "कि"]),  # marks stay with their letters
        ("বাংলা ভাষা।", ["বাংলা", "ভাষা"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("서울에서 1911년", ["서울에서", "1911년"]),
        ("می\u200cروم", ["میروم"]),  # a joiner is seen by nobody
        ("co\u00adoperate", ["cooperate"]),
        ("ΣΟΦΌΣ σοφός", ["σοφόσ", "σοφόσ"]),  # final sigma
        ("ﬁne x²", ["fine", "x2"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == normalise(text).split() == expected


def test_what_must_stay_apart() -> None:
    """The twins: symbols, accents and vowel signs are no punctuation."""
    for one, other in [("C++", "C"), ("कि", "का"), ("resume", "résumé"), ("が", "か"), ("1911", "191 1")]:
        assert normalise(one) != normalise(other)


@given(st.text(max_size=40))
def test_the_quick_ways_change_nothing(text: str) -> None:
    """Normalising twice is once, and a text is found in itself, whole."""
    said = normalise(text)
    assert normalise(said) == said or not any(c.isalnum() for c in text)
    if any(c.isalnum() for c in text):
        start, end = first_span(text, [text]) or (0, 0)
        assert normalise(text[start:end]) == said


@pytest.mark.parametrize(
    ("text", "phrases", "found"),
    [
        ("灯台は１９１１年に建てられた", ["1911年"], ["１９１１年"]),
        ("In der STRASSE, der Straße.", ["straße"], ["STRASSE", "Straße"]),
        ("born in 1995", ["9"], []),
        ("Rome, or New Rome", ["rome", "new rome"], ["Rome", "New Rome"]),  # the longest first
        ("राम शर्मा ने", ["शर्मा"], ["शर्मा"]),
        ("any", [], []),
        ("any", ["..."], []),
    ],
)
def test_places_are_those_of_the_text_as_it_is_written(text: str, phrases: list[str], found: list[str]) -> None:
    assert [text[start:end] for start, end in spans(text, phrases)] == found


def test_single_characters_count_as_pairs() -> None:
    assert pieces(normalise("灯台守 A12 b 人")) == ["灯台", "台守", "a12", "b", "人"]


def test_tokens_of_any_script() -> None:
    assert tokens_estimated("twelve bytes") == 3 and tokens_estimated("灯台") == 2 and tokens_estimated("") == 0
    assert fold("ABC") == "abc"
