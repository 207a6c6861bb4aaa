"""Rows to items: what is accepted, and why the rest is not."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.parse import (
    REASONS,
    Reasoning,
    Rejected,
    Trivia,
    clean_lines,
    compute_group,
    is_boolean,
    parse_list,
    parse_row,
)
from ft_pipeline.examples.rows import Row

RIVER = {
    "category": "Geography",
    "difficulty": "easy",
    "question": "Which river flows through Paris?",
    "correct_answer": "Seine",
    "incorrect_answers": '["Loire", "Rhône", "Garonne"]',
}
APPLES = {"Question": "How many?", "Complex_CoT": "1 + 2", "Response": "3"}


def parse(parser: str, values: dict[str, Any]) -> Trivia | Reasoning | Rejected:
    return parse_row(parser, Row("0" * 32, "rows.csv", 2, values))


def test_a_trivia_row_becomes_an_item() -> None:
    assert parse("trivia", RIVER) == Trivia(
        "Which river flows through Paris?",
        "Seine",
        ("Loire", "Rhône", "Garonne"),
        "Geography",
        "easy",
    )


def test_entities_white_space_and_the_case_of_the_difficulty_are_cleaned() -> None:
    written = RIVER | {
        "question": " Which river flows\nthrough Paris? ",
        "correct_answer": "Seine ",
        "incorrect_answers": '["Loire", "Rh&ocirc;ne ", " Garonne"]',
        "difficulty": " Easy",
    }
    assert parse("trivia", written) == parse("trivia", RIVER)


@pytest.mark.parametrize(
    ("correct", "incorrect"),
    [("True", '["False"]'), ("FALSE", ["true"]), (True, [False]), ("True", "False")],
)
def test_a_true_false_question_needs_one_wrong_answer(correct: object, incorrect: object) -> None:
    item = parse("trivia", RIVER | {"correct_answer": correct, "incorrect_answers": incorrect})
    assert isinstance(item, Trivia)
    assert {item.correct_answer.lower(), item.incorrect_answers[0].lower()} == {"true", "false"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": ""}, "empty_text"),
        ({"question": " &nbsp; "}, "empty_text"),
        ({"category": None}, "empty_text"),
        ({"difficulty": ""}, "empty_text"),
        ({"correct_answer": " "}, "missing_answer"),
        ({"correct_answer": None}, "missing_answer"),
        ({"correct_answer": "Loire"}, "answer_among_wrong_ones"),
        ({"correct_answer": "LOIRE "}, "answer_among_wrong_ones"),
        ({"correct_answer": "Rh&ocirc;ne"}, "answer_among_wrong_ones"),
        ({"incorrect_answers": '["Loire", "Rhône"]'}, "too_few_options"),
        ({"incorrect_answers": '["Loire", "loire", "Rhône"]'}, "too_few_options"),
        ({"incorrect_answers": '["Loire", "", "Rhône", "Garonne"]'}, "too_few_options"),
        ({"incorrect_answers": ["Loire", None, "Rhône", "Garonne"]}, "too_few_options"),
        ({"incorrect_answers": "[]"}, "too_few_options"),
        ({"incorrect_answers": ""}, "too_few_options"),
        ({"incorrect_answers": "{[]: 1}"}, "too_few_options"),
        ({"correct_answer": "True", "incorrect_answers": None}, "too_few_options"),
        ({"correct_answer": "True", "incorrect_answers": "null"}, "too_few_options"),
        ({"correct_answer": "True", "incorrect_answers": "[]"}, "too_few_options"),
        ({"correct_answer": "True", "incorrect_answers": "['TRUE']"}, "answer_among_wrong_ones"),
    ],
)
def test_a_trivia_row_that_cannot_be_used_has_its_reason(
    change: dict[str, object], reason: str
) -> None:
    assert parse("trivia", RIVER | change) == Rejected(reason)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("question", "empty_text"),
        ("difficulty", "empty_text"),
        ("correct_answer", "missing_answer"),
        ("incorrect_answers", "too_few_options"),
    ],
)
def test_a_json_record_without_a_key_is_rejected_like_an_empty_one(
    column: str, reason: str
) -> None:
    values = {name: value for name, value in RIVER.items() if name != column}
    assert parse("trivia", values) == Rejected(reason)


def test_a_chain_of_thought_keeps_its_line_breaks() -> None:
    values = APPLES | {"Complex_CoT": " First  \r\n\r\n\r\n then\tthis. \n"}
    assert parse("cot", values) == Reasoning("How many?", "First\n\nthen this.", "3")


@pytest.mark.parametrize(
    ("column", "reason"),
    [("Question", "empty_text"), ("Complex_CoT", "empty_text"), ("Response", "missing_answer")],
)
@pytest.mark.parametrize("value", ["", " \n ", None, "missing key"])
def test_a_chain_of_thought_without_a_text_has_its_reason(
    column: str, reason: str, value: str | None
) -> None:
    values: dict[str, str | None] = APPLES | {column: value}
    if value == "missing key":
        del values[column]
    assert parse("cot", values) == Rejected(reason)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, 2.5, True], ["1", "2.5", "True"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("('a', 'b')", ["a", "b"]),
        ("[1, 2]", ["1", "2"]),
        ('["a, b", "c; d"]', ["a, b", "c; d"]),
        ("[]", []),
        ("", []),
        ("[unclosed", []),
        (None, []),
        ("null", []),
        ("None", []),
        ("[null, 'a']", []),
        ('[null, "a"]', ["", "a"]),
    ],
)
def test_a_list_of_answers_is_read_in_every_form(value: object, expected: list[str]) -> None:
    assert parse_list(value) == expected


@settings(deadline=None)  # the machine is shared
@given(st.lists(st.text(), max_size=4))
def test_a_list_survives_json_and_repr(values: list[str]) -> None:
    assert parse_list(json.dumps(values)) == values
    assert parse_list(repr(values)) == values
    assert parse_list(values) == values


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("True", True), ("false", True), ("TRUE", True), ("Truth", False), ("", False)],
)
def test_true_and_false_are_the_booleans(answer: str, expected: bool) -> None:
    assert is_boolean(answer) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n\n\nb", "a\n\nb"),
        ("\n\na\n", "a"),
        (" a  b \r\n c", "a b\nc"),
        ("a&#10;b &amp; c", "a b & c"),
        (None, ""),
    ],
)
def test_lines_are_cleaned_one_by_one(text: str | None, expected: str) -> None:
    assert clean_lines(text) == expected


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
    ],
)
def test_a_group_is_the_question_without_case_spacing_and_punctuation(
    one: str, other: str, same: bool
) -> None:
    assert (compute_group(one) == compute_group(other)) is same


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["True", "[", "{[]: 1}", "\ud83d", "&#xD800;", "</think>"]),
    st.lists(st.none() | st.text(max_size=6), max_size=5),
    st.lists(st.text(max_size=6), min_size=3, max_size=4).map(json.dumps),
    st.lists(st.text(max_size=6), min_size=3, max_size=4).map(repr),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(deadline=None)  # the machine is shared
@given(st.fixed_dictionaries(dict.fromkeys(RIVER, ANYTHING)))
def test_any_trivia_row_becomes_a_clean_item_or_has_a_reason(values: dict[str, Any]) -> None:
    item = parse("trivia", values)
    if isinstance(item, Rejected):
        assert item.reason in REASONS
        return
    assert isinstance(item, Trivia)
    texts = [item.question, item.correct_answer, *item.incorrect_answers, item.category]
    for text in texts:
        assert text.encode("utf-8").strip()
        assert "\n" not in text
    folded = [answer.casefold() for answer in (item.correct_answer, *item.incorrect_answers)]
    assert len(set(folded)) == len(folded)


@settings(deadline=None)  # the machine is shared
@given(st.fixed_dictionaries(dict.fromkeys(APPLES, ANYTHING)))
def test_any_chain_of_thought_row_becomes_a_full_item_or_has_a_reason(
    values: dict[str, Any],
) -> None:
    item = parse("cot", values)
    if isinstance(item, Rejected):
        assert item.reason in REASONS
        return
    assert isinstance(item, Reasoning)
    for text in (item.question, item.thoughts, item.response):
        assert text.encode("utf-8").strip()
