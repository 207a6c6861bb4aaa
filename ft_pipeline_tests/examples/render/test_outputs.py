"""The files that a build writes: their columns, their order, and the counts of the report."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ft_pipeline.examples.read.parse import REASONS
from ft_pipeline_tests.examples.builds import QUIZ, Built, build, make_quiz


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Forty usable rows in two categories, two duplicates, an empty one, a broken one, a token."""
    rows = [*make_quiz(30), *make_quiz(10, start=30, category="Yards")]
    rows[7]["correct_answer"] = "<think>"
    more = [*make_quiz(2), {**make_quiz(1, start=90)[0], "question": ""}]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, *more]) + "[1, 2]\n"
    return build(
        tmp_path_factory.mktemp("built"), {"b.jsonl": lines}, "trivia", QUIZ, identity=("question",)
    )


def test_nothing_else_is_left_behind(built: Built) -> None:
    files = {str(f.relative_to(built.folder)) for f in built.folder.rglob("*") if f.is_file()}
    assert files == {
        "examples.parquet",
        "meta/rows.parquet",
        "meta/rejected.jsonl",
        "meta/report.json",
    }
    assert {f.name for f in built.folder.iterdir()} == {"examples.parquet", "meta"}


def test_the_report_is_written_as_it_is_returned(built: Built) -> None:
    assert json.loads((built.folder / "meta/report.json").read_text("utf-8")) == built.report


def test_the_counts_of_the_report_are_those_of_the_files(built: Built) -> None:
    report, examples, rows = built.report, built.examples, built.rows
    assert (report["rows_read"], report["rows_used"], report["rows_rejected"]) == (44, 40, 4)
    assert (len(rows), len(built.rejected)) == (40, 4)
    assert report["rejected_by_reason"] == {"duplicate": 2, "empty_text": 1, "malformed_row": 1}
    assert report["rows_sanitized"] == 1
    assert report["examples"] == len(examples)
    assert report["examples_by_task_and_split"] == Counter(
        f"{example['task']} {example['side']}" for example in examples
    )
    assert report["examples_by_category"] == Counter(example["category"] for example in examples)
    assert report["examples_by_difficulty"] == {"easy": 40}
    assert report["questions_by_split"] == Counter(row["side"] for row in rows)
    assert report["columns"]["rows"]["b.jsonl"]["question"] == "question"


def test_each_rejected_row_has_its_place_reason_and_meaning(built: Built) -> None:
    rejected = built.rejected
    assert [row["line"] for row in rejected] == [41, 42, 43, 44]
    for row in rejected:
        assert (row["source"], row["file"]) == ("rows", "b.jsonl")
        assert row["meaning"] == REASONS[row["reason"]]
    assert [row["row_id"] is None for row in rejected] == [False, False, False, True]
    assert [row["repeats"] for row in rejected] == [
        rejected[0]["row_id"],
        rejected[1]["row_id"],
        None,
        None,
    ]
    assert rejected[3]["text"] == "[1, 2]"


def test_each_used_row_has_its_place_question_and_split(built: Built) -> None:
    rows = {row["line"]: row for row in built.rows}
    assert sorted(rows) == list(range(1, 41))
    assert rows[8]["neutralized"] and sum(row["neutralized"] for row in rows.values()) == 1
    assert rows[3]["question"] == "Who lived in house2 of street2?"
    assert set(rows[3]) == {
        "row_id",
        "source",
        "file",
        "line",
        "group",
        "side",
        "question",
        "neutralized",
    }


def test_examples_have_the_documented_columns(built: Built) -> None:
    schema = pq.read_schema(built.folder / "examples.parquet")
    assert schema.names == [
        "example_id",
        "task",
        "side",
        "prompt",
        "completion",
        "history",
        "source_rows",
        "groups",
        "category",
        "difficulty",
    ]


def test_the_same_rows_give_the_same_bytes_again(tmp_path: Path) -> None:
    one, other = (build(tmp_path / name, make_quiz(40), "trivia", QUIZ) for name in "ab")
    assert other.content == one.content
    assert other.report == one.report
