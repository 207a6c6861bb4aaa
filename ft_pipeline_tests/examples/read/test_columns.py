"""Columns are found under their own name, a declared one, or a well-known one."""

from typing import Any

import pyarrow as pa
import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read.columns import find_column, pick, resolve_columns


@pytest.mark.parametrize(
    ("name", "found", "aliases", "expected"),
    [
        pytest.param("question", ["answer", "question"], {}, "question", id="own name"),
        pytest.param("question", ["Question"], {}, "Question", id="another case"),
        pytest.param(
            "Question", ["QUESTION"], {}, "QUESTION", id="another case, asked in capitals"
        ),
        pytest.param("correct_answer", ["Correct Answer"], {}, "Correct Answer", id="a blank"),
        pytest.param("question", ["question_text"], {}, "question_text", id="well known"),
        pytest.param("category", ["category_name"], {}, "category_name", id="category_name"),
        pytest.param("difficulty", ["difficulty_level"], {}, "difficulty_level", id="level"),
        pytest.param("label", ["labels"], {}, "labels", id="labels"),
        pytest.param("question", ["q", "question_text"], {}, "question_text", id="better known"),
        pytest.param("question", ["Q", "question"], {"question": "Q"}, "Q", id="declared"),
        pytest.param("question", ["FRAGE"], {"question": "Frage"}, "FRAGE", id="declared, case"),
        pytest.param("question", ["b"], {"question": ("a", "b")}, "b", id="second declared"),
        pytest.param(
            "question", ["question"], {"question": "a"}, "question", id="declared, absent"
        ),
        pytest.param("answer", ["a"], {"answer": "a.value"}, "a.value", id="path"),
        pytest.param("answer", ["b"], {"answer": "a.value"}, None, id="path, absent"),
        pytest.param("answer", ["Answer", "ANSWER"], {}, "Answer", id="the first of two"),
        pytest.param("question", ["frage"], {}, None, id="absent"),
    ],
)
def test_a_column_is_found(
    name: str, found: list[str], aliases: dict[str, Any], expected: str | None
) -> None:
    assert find_column(name, found, aliases) == expected


def test_columns_of_a_known_shape_are_taken_together() -> None:
    found = ["Question", "Complex_CoT", "Response", "reasoning"]
    needed = ["question", "thoughts", "response"]
    assert resolve_columns("r.csv", needed, [], found, {}) == {
        "question": "Question",
        "thoughts": "Complex_CoT",
        "response": "Response",
    }


def test_optional_columns_may_be_absent() -> None:
    assert resolve_columns("r.csv", ["a"], ["b", "c"], ["a", "c"], {}) == {"a": "a", "c": "c"}


def test_a_missing_column_is_named_with_what_to_do() -> None:
    expected = (
        r"r\.csv: no column `answer`\. Found: Question, answr\. Needed: question, answer\. "
        r"Did you mean `answr`\? .*declare `aliases: \{answer: <its name>\}`.*`format\.header`"
    )
    with pytest.raises(PipelineError, match=expected):
        resolve_columns("r.csv", ["question", "answer"], [], ["Question", "answr"], {})


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ([1, 2], "a", [1, 2]),
        ([{"b": 1}, {"c": 2}, None, "x", 5], "a.b", [1, None, None, None, None]),
        (['{"b": {"c": "é"}}', '{"b": "{\\"c\\": 1}"}', "{"], "a.b.c", ["é", 1, None]),
        (pa.array(['{"b": [1]}', None]), "a.b", [[1], None]),
        (["[" * 50_000], "a.b", [None]),
    ],
)
def test_a_path_reaches_into_nested_and_json_values(
    values: Any, path: str, expected: list[Any]
) -> None:
    assert pick({"a": values}, path) == expected


def test_a_name_with_a_dot_is_a_column_where_there_is_one() -> None:
    assert pick({"a.b": [1], "a": [{"b": 2}]}, "a.b") == [1]
