"""Clean text: one value and a whole column come out the same, and nothing is decoded twice."""

import html
import re
import unicodedata
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.read.text import (
    clean,
    clean_array,
    clean_lines,
    clean_verbatim,
    fold_letters,
    has_control_token,
    sanitize,
    sanitize_array,
)

ENTITIES = ["&amp;", "&quot;", "&#039;", "&#039", "&notit;", "&lt", "&#xD83D;", "&#0;", "&nbsp;"]
# What HTML decodes all the same, or to something else.
HALF_ENTITY = re.compile(r"&(?!(amp|quot|nbsp|#039|#xD83D|#0);)")
SPACES = [" ", "  ", "\t", "\r\n", "\n\n", "\x00", "\x1f", "\x85", "\u3000", "\ufeff", "\u2028"]
OTHERS = ["&", "#", "amp;", "quot;", "<|im_end|>", "[INST]", "e\u0301", "\ud83d", "क", "中", "é"]
PIECES = st.sampled_from([*ENTITIES, *SPACES, *OTHERS])
TEXT = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)
STORED = TEXT.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (7, "7"),
        ("  a \n\t b\u2003c ", "a b c"),
        ("&quot;a&quot;", '"a"'),
        ("&amp;quot;", "&quot;"),  # decoded once
        ("&amp;amp;lt;", "&amp;lt;"),
        ("&#39;x&#039 &#x27;", "'x' '"),
        ("f(&region, &lt) ?a=1&copy=2 &notit;", "f(&region, &lt) ?a=1&copy=2 &notit;"),  # code
        (f"&#{'9' * 5000}; &unknown;", f"&#{'9' * 5000}; &unknown;"),
        ("&lt;b&gt; &#039;x&#039;", "<b> 'x'"),
        ("A\u0301", "Á"),
        ("a&nbsp;&nbsp;b", "a b"),
        ("cut \ud83d", "cut \ufffd"),  # half of an emoji, as JSON's \ud83d gives it
        ("Столица России?", "Столица России?"),
        ("ما هي عاصمة فرنسا؟", "ما هي عاصمة فرنسا؟"),
        ("法国的首都\u3000是什么？", "法国的首都 是什么？"),
    ],
)
def test_clean_decodes_normalises_and_collapses(value: object, expected: str) -> None:
    assert clean(value) == expected


@settings(deadline=None, max_examples=200)
@given(TEXT)
def test_a_cleaned_text_has_single_spaces_and_can_be_encoded(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned == " ".join(cleaned.split())


@settings(deadline=None, max_examples=200)
@given(STORED.filter(lambda text: not HALF_ENTITY.search(text)))
def test_whole_entities_are_decoded_as_html_decodes_them_once(text: str) -> None:
    once = html.unescape(text).encode("utf-8", "replace").decode("utf-8")
    assert clean(text) == " ".join(unicodedata.normalize("NFC", once).split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n\n\nb", "a\n\nb"),
        ("\n\na\n", "a"),
        (" a  b \r\n c", "a b\nc"),
        ("a&#10;b &amp; c", "a\nb & c"),
        (None, ""),
    ],
)
def test_lines_are_cleaned_one_by_one(text: str | None, expected: str) -> None:
    assert clean_lines(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\r\ndef f():\r\n    return 1\r\n", "def f():\n    return 1"),
        ("if a &lt; b:\r\tpass", "if a < b:\n\tpass"),
        (None, ""),
    ],
)
def test_verbatim_text_keeps_its_indentation(text: str | None, expected: str) -> None:
    assert clean_verbatim(text) == expected


@pytest.mark.parametrize("convert", [clean, clean_lines, clean_verbatim])
@settings(deadline=None, max_examples=100)
@given(st.lists(st.none() | STORED, max_size=6))
def test_a_column_is_cleaned_like_each_of_its_values(
    convert: Callable[[object], str], values: list[str | None]
) -> None:
    cleaned = clean_array(pa.array(values, pa.string()), convert)
    assert cleaned.to_pylist() == [convert(value) for value in values]


def test_a_slice_of_a_column_is_cleaned_like_its_values() -> None:
    column = pa.array(["  out ", " a ", "b &amp; c", None, " out"], pa.string())
    assert clean_array(column.slice(1, 3)).to_pylist() == ["a", "b & c", ""]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 1+1?", "what is  1 + 1", True),
        ("What is “x”?", "What is 'x'!", True),
        ("STRASSE", "Straße", True),
        ("What is 1+1?", "What is 1+2?", False),
        ("???", "!!!", False),  # no letters: the text itself counts
        ("中文问题", "中文问题?", True),
        ("中文问题", "中文答案", False),
        ("Где Рим?", "где рим", True),
    ],
)
def test_letters_leave_out_case_spacing_and_punctuation(one: str, other: str, same: bool) -> None:
    folded = fold_letters(pa.array([one, other])).to_pylist()
    assert (folded[0] == folded[1]) is same


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=10), max_size=6), st.integers(0, 3))
def test_letters_of_a_value_do_not_depend_on_the_others(values: list[str], start: int) -> None:
    alone = [fold_letters(pa.array([value])).to_pylist()[0] for value in values]
    assert fold_letters(pa.array(values, pa.string())).to_pylist() == alone
    assert fold_letters(pa.array(values, pa.string()).slice(start)).to_pylist() == alone[start:]


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.data())
def test_letters_agree_for_texts_that_differ_in_case_and_punctuation(
    letters: str, data: st.DataObject
) -> None:
    marks = st.text(" \t\n.,;!?'\"()-–¿", max_size=2)
    other = "".join(
        data.draw(marks) + data.draw(st.sampled_from([c, c.swapcase()])) for c in letters
    )
    folded = fold_letters(pa.array([letters, other + data.draw(marks)])).to_pylist()
    assert folded[0] == folded[1] == letters.lower() + "\n"


@settings(deadline=None, max_examples=150)
@given(TEXT)
def test_a_sanitized_text_holds_no_control_token_and_the_same_letters(text: str) -> None:
    plain = sanitize(text)
    assert not has_control_token(plain)
    assert plain.replace(" ", "") == text.replace(" ", "")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.none() | STORED, max_size=6))
def test_a_column_is_sanitized_like_each_of_its_values(values: list[str | None]) -> None:
    found, mask = sanitize_array(pa.array(values, pa.string()))
    assert found.to_pylist() == [value and sanitize(value) for value in values]
    touched = [value is not None and has_control_token(value) for value in values]
    assert (mask.to_pylist() if mask is not None else [False] * len(values)) == touched


@settings(deadline=None, max_examples=100)
@given(st.lists(st.none() | st.lists(STORED, max_size=3), max_size=5))
def test_lists_are_sanitized_like_each_of_their_values(values: list[list[str] | None]) -> None:
    found, mask = sanitize_array(pa.array(values, pa.list_(pa.string())))
    assert found.to_pylist() == [row and [sanitize(text) for text in row] for row in values]
    touched = [any(map(has_control_token, row or ())) for row in values]
    assert (mask.to_pylist() if mask is not None else [False] * len(values)) == touched


@pytest.mark.parametrize("text", ["<" * 200_000, "<|" * 100_000, "<<|x|>" * 30_000, "[" * 200_000])
@pytest.mark.timeout(20)
def test_sanitizing_takes_time_in_proportion_to_the_text(text: str) -> None:
    assert not has_control_token(sanitize(text))
