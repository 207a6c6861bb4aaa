"""Fields to prompts and completions, and back."""

from typing import get_args

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ft_pipeline.config.recipe import CustomTemplate, ExampleInput, Examples
from ft_pipeline.config.templates import TEMPLATES, Template, find_fields
from ft_pipeline.examples.read.parse import PARSERS
from ft_pipeline.examples.render.templates import (
    QuizItem,
    Reasoning,
    expected_options,
    is_boolean,
    parse_chain_of_thought,
    parse_quiz_items,
    to_sql,
)

RIVER = QuizItem("Which river flows through Paris?", "Seine", ("Loire", "Rhône", "Garonne"))
FLAT = QuizItem("The Earth is flat.", "False", ("True",))
TWO = (
    "Question 1: Which river flows through Paris?\n"
    "Correct Answer: Seine\n"
    "Incorrect Options: Loire, Rhône, Garonne\n"
    "\n"
    "Question 2: The Earth is flat.\n"
    "Correct Answer: False\n"
    "Incorrect Options: True"
)


def render(text: str, **fields: str) -> str:
    """Render a template's text by DuckDB."""
    names = list(fields) or ["unused"]
    columns = ", ".join(f'"{name}"' for name in names)
    con = duckdb.connect()
    con.execute("CREATE TABLE row (" + ", ".join(f'"{name}" VARCHAR' for name in names) + ")")
    con.execute(
        f"INSERT INTO row ({columns}) VALUES ({', '.join('?' * len(names))})",
        [fields.get(name, "") for name in names],
    )
    sql = to_sql(text, {name: f'"{name}"' for name in names})
    return str(con.execute(f"SELECT {sql} FROM row").fetchall()[0][0])


def test_a_quiz_question_has_the_wording_of_the_guide() -> None:
    template = TEMPLATES["trivia"]["quiz_question"]
    fields = {
        "question": RIVER.question,
        "correct_answer": "Seine",
        "options": "Loire, Rhône, Garonne",
        "category": "Geography",
        "difficulty": "easy",
    }
    assert render(template.prompt, **fields) == (
        "Generate a quiz question about Geography with easy difficulty."
    )
    assert render(template.completion, **fields) == (
        "Question: Which river flows through Paris?\n"
        "Correct Answer: Seine\n"
        "Incorrect Options: Loire, Rhône, Garonne"
    )


def test_a_short_answer_is_asked_for() -> None:
    template = TEMPLATES["trivia"]["answer"]
    fields = {"question": RIVER.question, "correct_answer": "Seine"}
    assert render(template.prompt, **fields) == (
        "Answer in a few words: Which river flows through Paris?"
    )
    assert render(template.completion, **fields) == "Seine"


def test_each_parser_that_a_recipe_may_name_is_there_and_feeds_templates() -> None:
    named = get_args(ExampleInput.model_fields["parser"].annotation)
    assert set(named) == TEMPLATES.keys() == PARSERS.keys() - {"held_out"}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", ()),
        ("{a}{b} {a}", ("a", "b", "a")),
        ("{{a}} {b}", ("b",)),
        ("{{{a}}}", ("a",)),
        ("{answer.value} {größe} {a-b} {it's}", ("answer.value", "größe", "a-b", "it's")),
        ("{0}", ("0",)),
    ],
)
def test_the_fields_of_a_text_are_found(text: str, fields: tuple[str, ...]) -> None:
    assert find_fields(text) == fields


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{}", "{a!r}", "{a:>9}", "{a b}", "{a[0]}"])
def test_a_stray_brace_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"brace|field name|expected '}'|Single|format string"):
        find_fields(text)


def test_a_template_needs_each_field_once() -> None:
    assert Template("{b} {a} {b}", "{a} {c}").fields == ("b", "a", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("{{}}", "{}"),
        ("it's {a}", "it's x"),
        ("{a}{b}", "xy"),
        ("'; DROP TABLE row; --{a}", "'; DROP TABLE row; --x"),
        ("\\n\n\t$1 ? %s {a}", "\\n\n\t$1 ? %s x"),
    ],
)
def test_a_text_is_rendered_as_it_stands(text: str, expected: str) -> None:
    assert render(text, a="x", b="y") == expected


@settings(deadline=None, max_examples=50)  # the machine is shared
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.text(max_size=12))
def test_any_text_and_any_value_are_rendered_as_they_stand(text: str, value: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert render(f"{doubled}{{a}}{doubled}", a=value) == text + value + text


def make_recipe(prompt: str, completion: str, name: str = "mine") -> Examples:
    return Examples.model_validate(
        {
            "inputs": [{"source": "s", "parser": "qa", "templates": [name]}],
            "templates": {name: {"prompt": prompt, "completion": completion}},
        }
    )


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Say it.", "Yes."),
        ("{{question}}", "Yes."),
        ("{question", "{answer}"),
        ("{question}", "answer}"),
        ("", "{answer}"),
        ("Say {quest", "ion} now"),
        ("{question} {", "{{answer}"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused_with_the_recipe(
    prompt: str, completion: str
) -> None:
    with pytest.raises(ValidationError):
        make_recipe(prompt, completion)


@pytest.mark.parametrize("name", ["answer", "chat", "Mine", "my-own", "1st", "it's"])
def test_a_template_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValidationError, match="that is not built in"):
        make_recipe("{question}", "{answer}", name)


def test_an_unknown_template_is_named_with_its_near_miss() -> None:
    one = {"source": "s", "parser": "qa", "templates": ["anwser"]}
    with pytest.raises(ValidationError, match="Did you mean `answer`"):
        Examples.model_validate({"inputs": [one]})


def test_a_template_may_have_fields_in_its_prompt_or_completion_only() -> None:
    assert CustomTemplate(prompt="Tell me something.", completion="{answer}").completion


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
    text = f"Here you go!\n\n{TWO}\n\nQuestion 3: Cut off?\nCorrect Ans"
    assert parse_quiz_items(text) == [RIVER, FLAT]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("Loire, Rhône, Garonne", ("Loire", "Rhône", "Garonne")),
        ("1,000; 2,000; 3", ("1,000", "2,000", "3")),
        ("Paris, Texas; Rome; Athens", ("Paris, Texas", "Rome", "Athens")),
        ("a;b, c, d", ("a;b", "c", "d")),
        ("True", ("True",)),
    ],
)
def test_options_are_split_where_they_were_joined(line: str, options: tuple[str, ...]) -> None:
    text = f"Question: Which?\nCorrect Answer: x\nIncorrect Options: {line}"
    assert parse_quiz_items(text) == [QuizItem("Which?", "x", options)]


@pytest.mark.parametrize("text", ["3", "1 + 2 </think> 3", "<think>1 + 2", "So: <think>1</think>3"])
def test_thoughts_without_both_tags_at_the_start_are_none(text: str) -> None:
    assert parse_chain_of_thought(text) is None


def test_thoughts_stand_between_tags_before_the_response() -> None:
    template = TEMPLATES["cot"]["chain_of_thought"]
    fields = {"question": "How many?", "thoughts": "1 + 2\n= 3", "response": "Three."}
    assert render(template.prompt, **fields) == "How many?"
    completion = render(template.completion, **fields)
    assert completion == "<think>\n1 + 2\n= 3\n</think>\n\nThree."
    assert parse_chain_of_thought(completion) == Reasoning("1 + 2\n= 3", "Three.")


@pytest.mark.parametrize(
    ("answer", "boolean", "options"), [("True", True, 1), ("false", True, 1), ("Seine", False, 3)]
)
def test_the_expected_number_of_wrong_options_is_one_for_true_false_else_three(
    answer: str, boolean: bool, options: int
) -> None:
    assert is_boolean(answer) is boolean
    assert expected_options(answer) == options
