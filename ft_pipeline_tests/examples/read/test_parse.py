"""Values of rows: lists, answers, labels, dialogues and chats in every way they are written."""

import json
import subprocess
import sys
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.read.text import clean
from ft_pipeline.examples.read.values import (
    expand_conversations,
    parse_list,
    parse_messages,
    read_answers,
    read_labels,
    read_line,
    read_lines,
    read_lists,
    read_turns,
    read_verbatim,
    to_text,
)

ANY = st.text(st.characters(codec="utf-8"), max_size=8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", None), ["a", ""]),
        ([1, 2.5, True], ["1", "2.5", "True"]),
        ({"x": "a", "y": "b"}, ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ('["a","b"]', ["a", "b"]),
        ('["a\\n\\u00e9", "b"]', ["a\né", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("('a', 'b')", ["a", "b"]),
        ("[1, 2]", ["1", "2"]),
        ('["a, b", "c; d"]', ["a, b", "c; d"]),
        ('"a", "b"', ["a", "b"]),
        ("a | b, c | d", ["a", "b, c", "d"]),
        ("a; b, c", ["a", "b, c"]),
        ("a, b,c", ["a", "b", "c"]),
        ("Loire", ["Loire"]),
        ("'tis", ["'tis"]),
        ("[]", []),
        ("", []),
        (" ", []),
        (None, []),
        ("null", []),
        ("None", []),
        ("[unclosed", None),
        ("[null, 'a']", None),
        ('[null, "a"]', ["", "a"]),
        ("{[]: 1}", None),
        ("[" * 50_000, None),
        ("[" + "9" * 5_000 + "]", None),
        ("[" + "-" * 50_000 + "1]", None),
    ],
)
def test_a_list_of_answers_is_read_in_every_form(value: object, expected: list[str] | None) -> None:
    assert parse_list(value) == expected


@pytest.mark.parametrize("value", ["[{(1, 2): 3}]", "[{b'a': 3}]", "[0x" + "f" * 5_000 + "]"])
def test_a_list_with_values_that_are_no_text_is_read_or_refused(value: str) -> None:
    found = parse_list(value)
    assert found is None or all(isinstance(item, str) for item in found)


def test_a_set_is_read_in_the_same_order_every_time() -> None:
    code = (
        "from ft_pipeline.examples.read.values import parse_list\n"
        "print(parse_list(\"{'a', 'b', 'c', 'd', 'e'}\"))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_list_of_numpy_without_commas_is_not_one_item() -> None:
    assert parse_list("['a' 'b'\n 'c']") in (None, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("value", "delimiter", "expected"),
    [
        ("a / b", "/", ["a", "b"]),
        ("a, b; c, d", ";", ["a, b", "c, d"]),
        ("[a] / [b]", "/", ["[a]", "[b]"]),
        ('["a / b", "c"]', "/", ["a / b", "c"]),
    ],
)
def test_a_list_is_read_with_the_declared_delimiter(
    value: str, delimiter: str, expected: list[str]
) -> None:
    assert parse_list(value, delimiter) == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(ANY, max_size=4))
def test_a_list_survives_json_and_repr(values: list[str]) -> None:
    assert parse_list(json.dumps(values)) == values
    assert parse_list(json.dumps(values, ensure_ascii=False)) == values
    assert parse_list(repr(values)) == values
    assert parse_list(values) == values


WRITTEN = st.one_of(
    st.none(),
    st.lists(ANY, max_size=4).map(json.dumps),
    st.lists(ANY, max_size=4).map(lambda values: json.dumps(values, ensure_ascii=False)),
    st.lists(ANY, max_size=4).map(repr),
    st.lists(ANY, max_size=4).map(" | ".join),
    st.lists(st.sampled_from(['"', "[", "]", ", ", "a", '", "', "\\", "\n"]), max_size=6).map(
        "".join
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(WRITTEN, max_size=6), st.integers(0, 2))
def test_a_column_of_lists_is_read_like_each_of_its_values(
    values: list[str | None], start: int
) -> None:
    each = [parse_list(value) for value in values]
    expected = [items and [clean(item) for item in items] for items in each]
    assert read_lists(values).to_pylist() == expected
    assert read_lists(pa.array(values, pa.string())).to_pylist() == expected
    assert read_lists(pa.array(values, pa.string()).slice(start)).to_pylist() == expected[start:]


def test_a_list_with_line_breaks_in_its_texts_is_read_the_same_in_any_column() -> None:
    value = '["a\nb", "c\td"]'  # no strict JSON, but certain
    assert read_lists(pa.array([value])).to_pylist() == read_lists([value]).to_pylist()


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (read_line, " a\n&amp; b ", "a & b"),
        (read_lines, " First  \r\n\r\n\r\n then\tthis. \n", "First\n\nthen this."),
        (read_verbatim, "if a:\r\n    b\n", "if a:\n    b"),
    ],
)
def test_texts_are_read_with_their_lines_as_asked(read: Any, value: str, expected: str) -> None:
    assert read([value]).to_pylist() == [expected]
    assert read(pa.array([value])).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7"),
        (1.5, "1.5"),
        (10**30, str(10**30)),
        (True, "True"),
        (None, None),
        (float("nan"), None),
        (["a", 1, None], '["a", 1, null]'),
        ({"b": "é"}, '{"b": "é"}'),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        ("cut \ud83d", "cut \ufffd"),
        ({"cut \ud83d": "\ud83d"}, '{"cut \ufffd": "\ufffd"}'),
    ],
)
def test_values_of_any_type_become_text(value: object, expected: str | None) -> None:
    assert to_text([value, "x"]).to_pylist() == [expected, "x"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["Paris", "City of Paris"], "Paris"),
        (["", None, "Paris"], "Paris"),
        ('["Paris", "City of Paris"]', "Paris"),
        ("['Paris']", "Paris"),
        ("Paris, France", "Paris, France"),
        ("[sic] Paris", "[sic] Paris"),
        ("3 + 4\n#### 7", "3 + 4\n#### 7"),
        ([], ""),
        (None, ""),
        (5, "5"),
    ],
)
def test_of_several_accepted_answers_the_first_is_read(value: object, expected: str) -> None:
    assert read_answers([value, "plain"]).to_pylist() == [expected, "plain"]
    if isinstance(value, str | None):
        column = pa.array([value, "plain"], pa.string())
        assert read_answers(column).to_pylist() == [expected, "plain"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((one, "1") for one in (1, 1.0, True, "TRUE", "true", "1", "1.0")),
        *((zero, "0") for zero in (0, 0.0, False, "False", "0")),
        (" Scam ", "Scam"),
        (None, ""),
    ],
)
def test_labels_are_text_or_numbers(value: object, expected: str) -> None:
    assert read_labels([value]).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A: hi\r\nB: ho", "A: hi\nB: ho"),
        ([{"speaker": "A", "text": "hi"}, {"role": "B", "content": "ho"}], "A: hi\nB: ho"),
        ('[{"from": "A", "value": "hi"}, {"from": "B", "value": "ho"}]', "A: hi\nB: ho"),
        ("[laughs] hi", "[laughs] hi"),
        (None, ""),
    ],
)
def test_dialogues_are_text_or_lists_of_turns(value: object, expected: str) -> None:
    assert read_turns([value]).to_pylist() == [expected]
    if isinstance(value, str | None):
        assert read_turns(pa.array([value], pa.string())).to_pylist() == [expected]


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CHAT, [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]),
        (json.dumps(CHAT[1:2]), [("user", "Hi")]),
        ({"conversations": CHAT[1:2]}, [("user", "Hi")]),
        ([{"from": "human", "value": "Hi"}], [("human", "Hi")]),
        ([], []),
        ([{"role": "user"}], None),
        ([{"content": "Hi"}], None),
        ([{"role": "user", "content": 5}], None),
        (["Hi"], None),
        ("Hi", None),
        ("[" * 50_000, None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_chats_are_read_as_pairs_of_role_and_text(value: object, expected: object) -> None:
    assert parse_messages(value) == expected


def test_a_chat_is_taken_apart_into_history_prompt_and_completion() -> None:
    chats = [json.dumps(CHAT), json.dumps(CHAT[:2]), json.dumps(CHAT[2:]), "no chat", None]
    found = expand_conversations({"messages": pa.array(chats, pa.string())})
    nulls = [None] * 4
    assert found["history"].to_pylist() == [json.dumps(CHAT[:1]), *nulls]
    assert found["prompt"].to_pylist() == ["Hi", *nulls]
    assert found["completion"].to_pylist() == ["Hello", *nulls]


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["True", "[", "{[]: 1}", "\ud83d", "&#xD800;", "</think>", "['\\ud83d']"]),
    st.lists(st.none() | st.text(max_size=6), max_size=5),
    st.lists(st.text(max_size=6), min_size=3, max_size=4).map(json.dumps),
    st.lists(st.text(max_size=6), min_size=3, max_size=4).map(repr),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.mark.parametrize("read", [read_line, read_lines, read_verbatim, read_answers, read_turns])
@settings(deadline=None, max_examples=60)
@given(st.lists(ANYTHING, max_size=4))
def test_any_values_are_read_as_text_that_a_file_can_hold(read: Any, values: list[Any]) -> None:
    found = read(values).to_pylist()
    assert len(found) == len(values)
    for text in found:
        assert text.encode("utf-8").decode("utf-8").strip() == text


@settings(deadline=None, max_examples=150)
@given(st.lists(ANYTHING, max_size=4))
def test_any_values_are_read_as_clean_lists_or_none(values: list[Any]) -> None:
    found = read_lists(values).to_pylist()
    assert len(found) == len(values)
    assert all(clean(text) == text for items in found for text in items or () if "&" not in text)
