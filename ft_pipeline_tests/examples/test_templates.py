"""Items to prompts and completions, and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.parse import Reasoning, Trivia, clean_lines
from ft_pipeline.examples.rows import clean
from ft_pipeline.examples.templates import (
    QuizItem,
    expected_options,
    is_readable,
    parse_chain_of_thought,
    parse_quiz_items,
    render_chain_of_thought,
    render_quiz_question,
    render_quiz_set,
)

RIVER = Trivia(
    "Which river flows through Paris?",
    "Seine",
    ("Loire", "Rhône", "Garonne"),
    "Geography",
    "easy",
)
FLAT = Trivia("The Earth is flat.", "False", ("True",), "Geography", "easy")


def as_quiz_item(item: Trivia) -> QuizItem:
    return QuizItem(item.question, item.correct_answer, item.incorrect_answers)


def test_a_quiz_question_has_the_wording_of_the_guide() -> None:
    assert render_quiz_question(RIVER) == (
        "Generate a quiz question about Geography with easy difficulty.",
        "Question: Which river flows through Paris?\n"
        "Correct Answer: Seine\n"
        "Incorrect Options: Loire, Rhône, Garonne",
    )


def test_a_quiz_set_has_the_wording_of_the_guide_and_numbers_its_questions() -> None:
    assert render_quiz_set([RIVER, FLAT]) == (
        "Generate a set of 2 quiz questions about Geography with varying difficulty levels.",
        "Question 1: Which river flows through Paris?\n"
        "Correct Answer: Seine\n"
        "Incorrect Options: Loire, Rhône, Garonne\n"
        "\n"
        "Question 2: The Earth is flat.\n"
        "Correct Answer: False\n"
        "Incorrect Options: True",
    )


def test_a_chain_of_thought_stands_between_tags_before_the_response() -> None:
    item = Reasoning("How many?", "1 + 2\n= 3", "Three.")
    assert render_chain_of_thought(item) == (
        "How many?",
        "<think>\n1 + 2\n= 3\n</think>\n\nThree.",
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("Loire", "Rhône", "Garonne"), "Loire, Rhône, Garonne"),
        (("1,000", "2,000", "3"), "1,000; 2,000; 3"),
        (("Paris, Texas", "Rome", "Athens"), "Paris, Texas; Rome; Athens"),
        (("a;b", "c", "d"), "a;b, c, d"),
        (("True",), "True"),
    ],
)
def test_options_are_joined_so_that_they_read_back(options: tuple[str, ...], line: str) -> None:
    item = Trivia("Which?", "x", options, "Any", "easy")
    _, completion = render_quiz_question(item)
    assert completion.endswith(f"Incorrect Options: {line}")
    assert parse_quiz_items(completion) == [as_quiz_item(item)]
    assert is_readable(item)


@pytest.mark.parametrize(
    "options", [("a; b", "c", "d"), ("a, b; c", "d", "e"), ("a, b",), ("a; b",)]
)
def test_options_that_would_read_back_otherwise_are_found(options: tuple[str, ...]) -> None:
    assert not is_readable(Trivia("Which?", "x", options, "Any", "easy"))


@pytest.mark.parametrize(
    ("thoughts", "response", "expected"),
    [
        ("1 + 2", "3", True),
        ("a <think> b", "3", True),
        ("a", "3 </think> 4", True),
        ("a </think> b", "3", False),
    ],
)
def test_a_thought_that_closes_its_tag_is_found(
    thoughts: str, response: str, expected: bool
) -> None:
    assert is_readable(Reasoning("How many?", thoughts, response)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I like rivers.",
        "Question: Which?\nCorrect Answer: x",
        "Question: Which?\nIncorrect Options: a, b, c",
        "Question: Which?\n\nCorrect Answer: x\nIncorrect Options: a, b, c",
        "question: Which?\ncorrect answer: x\nincorrect options: a, b, c",
    ],
)
def test_an_incomplete_item_is_not_read(text: str) -> None:
    assert parse_quiz_items(text) == []


def test_complete_items_are_read_in_order_among_other_text() -> None:
    _, two = render_quiz_set([RIVER, FLAT])
    text = f"Here you go!\n\n{two}\n\nQuestion 3: Cut off?\nCorrect Ans"
    assert parse_quiz_items(text) == [as_quiz_item(RIVER), as_quiz_item(FLAT)]


@pytest.mark.parametrize("text", ["3", "1 + 2 </think> 3", "<think>1 + 2", "So: <think>1</think>3"])
def test_thoughts_without_both_tags_at_the_start_are_none(text: str) -> None:
    assert parse_chain_of_thought(text) is None


def test_the_expected_number_of_wrong_options_is_one_for_true_false_else_three() -> None:
    assert [expected_options(answer) for answer in ("True", "false", "Seine")] == [1, 1, 3]


TEXT = st.text(max_size=16).map(clean).filter(bool)
OPTION = TEXT.filter(lambda text: ";" not in text)
TRIVIA = st.builds(
    Trivia,
    question=TEXT,
    correct_answer=TEXT,
    incorrect_answers=st.lists(OPTION, min_size=3, max_size=3).map(tuple),
    category=TEXT,
    difficulty=TEXT,
)


@settings(deadline=None)  # the machine is shared
@given(st.lists(TRIVIA, min_size=1, max_size=4))
def test_items_without_a_semicolon_survive_rendering(items: list[Trivia]) -> None:
    expected = [as_quiz_item(item) for item in items]
    assert parse_quiz_items(render_quiz_question(items[0])[1]) == expected[:1]
    assert parse_quiz_items(render_quiz_set(items)[1]) == expected


LINES = st.text(max_size=24).map(clean_lines).filter(bool)


@settings(deadline=None)  # the machine is shared
@given(LINES, LINES.filter(lambda text: "</think>" not in text), LINES)
def test_thoughts_without_a_closing_tag_survive_rendering(
    question: str, thoughts: str, response: str
) -> None:
    _, completion = render_chain_of_thought(Reasoning(question, thoughts, response))
    assert parse_chain_of_thought(completion) == Reasoning("", thoughts, response)
