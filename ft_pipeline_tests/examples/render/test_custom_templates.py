"""Templates of the recipe: columns, braces, near misses."""

from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline_tests.examples.builds import (
    build,
    build_custom,
    make_qa,
)


def test_a_template_of_the_recipe_takes_columns_and_doubled_braces(tmp_path: Path) -> None:
    rows = [{**row, 'It\'s "it"'.replace(" ", "_"): f"y{n}"} for n, row in enumerate(make_qa(12))]
    built = build_custom(tmp_path, rows, "it's {{{It's_\"it\"}}} {question}", "{{}} {answer}")
    expected = ("it's {y3} Who lived in house3 of street3?", "{} Person 3")
    assert expected in built.texts


def test_a_template_reaches_into_nested_columns(tmp_path: Path) -> None:
    rows = [{**row, "place": {"town": f"t{n}"}} for n, row in enumerate(make_qa(12))]
    built = build_custom(tmp_path, rows, "{place.town}: {question}", "{answer}")
    assert ("t3: Who lived in house3 of street3?", "Person 3") in built.texts


def test_a_template_may_turn_prompt_and_completion_around(tmp_path: Path) -> None:
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in make_qa(12)]
    mine = {"mine": {"prompt": "{completion}", "completion": "{prompt}"}}
    built = build(tmp_path, rows, "prompt_completion", ["mine"], templates_of_recipe=mine)
    assert sorted(built.texts) == sorted((row["answer"], row["question"]) for row in make_qa(12))


def test_a_column_that_is_not_there_is_named_with_its_near_miss(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        build_custom(tmp_path, [{**r, "year": 1} for r in make_qa(12)], "{yaer}", "{answer}")
    message = str(caught.value)
    assert "no column `yaer`" in message
    assert "Found: question, answer, year." in message
    assert "Did you mean `year`?" in message


def test_a_row_without_a_text_that_its_template_needs_is_rejected(tmp_path: Path) -> None:
    rows = [{**row, "year": "" if n == 4 else n} for n, row in enumerate(make_qa(12))]
    assert build_custom(tmp_path, rows, "{year} {question}", "{answer}").reasons == {
        5: "empty_text"
    }


PLACED = ("text", "file", "line", "reason", "side", "identity", "letters", "broken", "controlled")
MADE = ("source", "group", "history", "position", "prompt", "row_id", "question_group", "Question")
CLASHING = ("task", "n")


@pytest.mark.parametrize("column", [*PLACED, *MADE, *CLASHING])
def test_a_template_may_name_any_column(tmp_path: Path, column: str) -> None:
    rows = [{**row, column: f"value{n}"} for n, row in enumerate(make_qa(12))]
    built = build_custom(tmp_path, rows, f"<{{{column}}}> {{question}}", "{answer}")
    assert ("<value3> Who lived in house3 of street3?", "Person 3") in built.texts
    assert {row["file"] for row in built.rows} == {"rows.jsonl"}


def test_columns_that_differ_in_case_are_told_apart(tmp_path: Path) -> None:
    rows = [{**row, "ID": f"A{n}", "id": f"B{n}"} for n, row in enumerate(make_qa(12))]
    built = build_custom(tmp_path, rows, "{ID} {id} {question}", "{answer}")
    assert ("A3 B3 Who lived in house3 of street3?", "Person 3") in built.texts
