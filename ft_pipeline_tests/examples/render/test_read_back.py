"""Any text in any column survives parsing, rendering and JSON Lines."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.read.parse import REASONS
from ft_pipeline.examples.read.text import clean, sanitize
from ft_pipeline.examples.read.values import parse_list
from ft_pipeline.examples.render.templates import QuizItem, parse_quiz_items
from ft_pipeline_tests.examples.builds import (
    QUIZ,
    Record,
    build,
    build_custom,
    make_qa,
    make_quiz,
    read_sides,
)

TEXTS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(
        [
            "Numbers",
            "a; b",
            "a, b",
            "Question: x",
            "True",
            "\ud83d",
            "&quot;a\nb",
            "\u2028",
            "<s>",
            "\x00",
            "[]",
            '{"a": 1}',
            "Correct Answer: y",
            "1,5",
        ]
    ),
)
ANYTHING = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(TEXTS, max_size=4),
    st.lists(TEXTS, min_size=3, max_size=3).map(json.dumps),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
)
# Half a character as a list has a test of its own.
LISTS = ANYTHING.filter(lambda value: value != "\ud83d")
COLUMNS = ("category", "difficulty", "question", "correct_answer", "incorrect_answers")


def show(value: Any) -> str:
    """Return what the data formats document of any value: nested ones as JSON."""
    nested = isinstance(value, list | dict)
    text = json.dumps(value, ensure_ascii=False) if nested else "" if value is None else str(value)
    return sanitize(clean(text))


def expect_item(record: Record) -> QuizItem:
    wrong = parse_list(record["incorrect_answers"]) or []
    answer = show(record["correct_answer"])
    options = tuple(show(option) for option in wrong)
    truth = {"true": "True", "false": "False"}
    return QuizItem(
        show(record["question"]),
        truth.get(answer.lower(), answer),
        tuple(truth.get(o.lower(), o) for o in options) if len(options) == 1 else options,
    )


# The machine is shared; a failing example of so many builds would take minutes to shrink.
FEW = settings(deadline=None, max_examples=10, phases=[Phase.explicit, Phase.generate])


@FEW
@given(
    st.lists(
        st.fixed_dictionaries(
            {name: ANYTHING for name in COLUMNS}
            | {"incorrect_answers": st.lists(TEXTS, min_size=1, max_size=4) | LISTS}
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_row_is_rejected_or_reads_back_from_its_examples(rows: list[Record]) -> None:
    records = [*make_quiz(12), *rows]
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder), records, "trivia", QUIZ)
        assert built.report["rows_read"] == len(records)
        assert len(records) == len(built.rows) + len(built.rejected)
        assert built.report["rows_rejected"] == len(built.rejected)
        assert {row["reason"] for row in built.rejected} <= set(REASONS)
        lines = [line for side in read_sides(built).values() for line in side]
        raw = {row["row_id"]: records[row["line"] - 1] for row in built.rows}
    assert len(lines) == built.report["examples"]
    for line in lines:
        made_of = [raw[row_id] for row_id in line["source_rows"]]
        items = parse_quiz_items(line["completion"])
        assert items == [expect_item(record) for record in made_of]
        category = show(made_of[0]["category"])
        assert f" about {category} with " in line["prompt"]


@FEW
@given(st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING), min_size=1, max_size=8))
def test_any_text_survives_a_template_of_the_recipe(values: list[tuple[Any, ...]]) -> None:
    extra = [dict(zip(("question", "answer", "note"), row, strict=True)) for row in values]
    records = [{**row, "note": "-"} for row in make_qa(12)] + extra
    with tempfile.TemporaryDirectory() as folder:
        built = build_custom(Path(folder), records, "{{{question}}}", "\x01{note}\x02{answer}\x03")
        lines = [line for side in read_sides(built).values() for line in side]
        assert len(records) == len(built.rows) + len(built.rejected)
        made = {e["example_id"]: (e["prompt"], e["completion"]) for e in built.examples}
        questions = {row["row_id"]: row["question"] for row in built.rows}
    assert {e["example_id"]: (e["prompt"], e["completion"]) for e in lines} == made
    assert all(e["prompt"] == f"{{{questions[e['source_rows'][0]]}}}" for e in lines)


@pytest.mark.parametrize("options", ["\ud83d", "a|b\ud83d|c"])
def test_half_a_character_in_a_delimited_list_is_replaced(tmp_path: Path, options: str) -> None:
    row = {**make_quiz(1, start=99)[0], "incorrect_answers": options}
    built = build(tmp_path, [*make_quiz(12), row], "trivia", QUIZ)
    assert built.report["rows_used"] + built.report["rows_rejected"] == 13
