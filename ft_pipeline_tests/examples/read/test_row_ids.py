"""A row has the same id in any file format and in every recipe."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline_tests.examples.builds import (
    QUIZ,
    Record,
    build,
    make_qa,
    make_quiz,
    to_csv,
    to_jsonl,
)


def test_a_row_id_is_32_hex_characters_whatever_else_the_row_holds(tmp_path: Path) -> None:
    rows = make_qa(20)
    before = build(tmp_path / "1", rows, identity=("question",))
    other = [{**row, "answer": "Other", "more": "x"} for row in rows]
    after = build(tmp_path / "2", other, identity=("question",))
    ids = [row["row_id"] for row in before.rows]
    assert all(len(row_id) == 32 and int(row_id, 16) >= 0 for row_id in ids)
    assert [row["row_id"] for row in after.rows] == ids
    # SHA-256 over name of the source, then name and value of each identity column.
    text = "rows\x1fquestion\x1eWho lived in house0 of street0?"
    assert hashlib.sha256(text.encode("utf-8")).hexdigest()[:32] in ids


ANY_RECIPE = {
    "trivia": "answer",
    "qa": "answer",
    "cot": "answer",
    "prompt_completion": "as_is",
    "dialogue_label": "dialogue_label",
}


def make_wide(count: int, question: str, answer: str) -> list[Record]:
    """Rows that every parser of single texts can read."""
    return [
        {
            "question": question.format(n=n),
            "prompt": question.format(n=n),
            "dialogue": question.format(n=n),
            "answer": answer,
            "correct_answer": "x",
            "response": answer,
            "completion": answer,
            "label": "1.0",
            "thoughts": "Well.",
            "incorrect_answers": '["a", "b", "c"]',
            "category": "K",
            "difficulty": "Easy",
        }
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("parser", "question", "answer", "identity"),
    [
        ("trivia", "Who lived in house{n}?", "x", ("question",)),
        ("cot", "Who lived in house{n}?", "x", ("question", "answer")),
        ("prompt_completion", "Who lived in house{n}?", "x", ("prompt", "label")),
        ("dialogue_label", "Who lived in house{n}?", "x", ("dialogue", "prompt")),
        ("trivia", "P{n}.\n\n\nP{n}.", "x", ("question",)),
        ("prompt_completion", "P{n}.\n\nP.", "x", ("prompt",)),
        ("prompt_completion", "H{n}:\n    twice", "x", ("prompt",)),
        ("trivia", "Who{n}?", '["x", "y"]', ("question", "answer")),
        ("dialogue_label", "Who{n}?", "x", ("question", "label")),
        ("trivia", "Who lived in house{n}?", "x", ()),
        ("dialogue_label", "Who lived in house{n}?", "x", ()),
    ],
)
def test_a_row_id_is_the_same_in_every_recipe(
    tmp_path: Path, parser: str, question: str, answer: str, identity: tuple[str, ...]
) -> None:
    rows = make_wide(12, question, answer)
    # Near-duplicates are not looked for: which rows are used is not the question here.
    ids = [
        {
            row["row_id"]
            for row in build(
                tmp_path / each,
                rows,
                each,
                [ANY_RECIPE[each]],
                identity=identity,
                near_duplicates={"threshold": None},
            ).rows
        }
        for each in ("qa", parser)
    ]
    assert ids[0] == ids[1]


def test_the_name_that_a_parser_gives_a_column_leaves_the_row_ids_equal(tmp_path: Path) -> None:
    rows = [
        {"text_of_q": r["question"], "answer": "x", "problem": r["question"]} for r in make_qa(9)
    ]
    one = build(tmp_path / "1", rows)
    other = build(
        tmp_path / "2",
        rows,
        templates=["mine"],
        templates_of_recipe={"mine": {"prompt": "{Problem}", "completion": "{answer}"}},
    )
    assert {row["row_id"] for row in one.rows} == {row["row_id"] for row in other.rows}


def test_a_row_id_does_not_depend_on_the_columns_that_templates_ask_for(tmp_path: Path) -> None:
    rows = [{**row, "Topic": "towns", "year": 1900} for row in make_qa(12)]
    mine = {"mine": {"prompt": "{topic} {year} {question}", "completion": "{answer}"}}
    plain = build(tmp_path / "1", rows)
    custom = build(tmp_path / "2", rows, templates=["mine"], templates_of_recipe=mine)
    assert [row["row_id"] for row in custom.rows] == [row["row_id"] for row in plain.rows]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(json.dumps, id="escaped"),
        pytest.param(lambda v: json.dumps(v, separators=(",", ":")), id="compact"),
        pytest.param(repr, id="python"),
    ],
)
def test_how_a_list_is_written_leaves_the_row_ids_equal(tmp_path: Path, write: Any) -> None:
    rows = [{**row, "incorrect_answers": ["é", "b", "c"]} for row in make_quiz(12)]
    written = [{**row, "incorrect_answers": write(row["incorrect_answers"])} for row in rows]
    plain = build(tmp_path / "1", {"a.jsonl": to_jsonl(rows)}, "trivia", QUIZ)
    other = build(tmp_path / "2", {"a.csv": to_csv(written)}, "trivia", QUIZ)
    assert [row["row_id"] for row in other.rows] == [row["row_id"] for row in plain.rows]


def test_an_identity_column_that_a_parser_reads_verbatim_has_the_same_ids(tmp_path: Path) -> None:
    """`question` is what `prompt_completion` takes for its prompt, with all its white space."""
    rows = [{"question": f"  How  many\n\n are {n}?", "answer": "All"} for n in range(9)]
    more = {"identity": ("question",), "near_duplicates": {"threshold": None}}
    qa = build(tmp_path / "1", rows, "qa", ("answer",), **more)
    verbatim = build(tmp_path / "2", rows, "prompt_completion", ("as_is",), **more)
    ids = {row["row_id"] for row in qa.rows}
    assert len(ids) == 9
    assert {row["row_id"] for row in verbatim.rows} == ids
