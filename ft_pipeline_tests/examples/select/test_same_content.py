"""Only content decides: not the order of rows and files, nor their format, nor their size."""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.select import partition as order
from ft_pipeline_tests.examples.builds import (
    QUIZ,
    Record,
    build,
    make_qa,
    make_quiz,
    make_text,
    to_csv,
    to_jsonl,
    to_parquet,
)


def make_repetitive_quiz() -> list[Record]:
    """Rows with duplicates that differ elsewhere, near-duplicates, and other answers."""
    rng = random.Random(7)
    rows = make_quiz(24)
    rows += [
        {**row, "difficulty": "hard", "incorrect_answers": ["x", "y", "z"]} for row in rows[:5]
    ]
    rows += [{**row, "correct_answer": "Someone else"} for row in rows[5:9]]
    for n in range(6):
        words = make_text(rng, 20)
        texts = [" ".join(words), " ".join([*words, "indeed"]), " ".join([*words, "then"])]
        rows += [{**rows[0], "question": text, "correct_answer": f"C{n}"} for text in texts]
    return rows


REPETITIVE = make_repetitive_quiz()


def build_parts(keep: str, parts: Mapping[str, Sequence[Record]]) -> tuple[Record, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        built = build(
            Path(folder),
            {name: to_csv(rows) for name, rows in parts.items() if rows},
            "trivia",
            QUIZ,
            identity=("question", "correct_answer"),
            near_duplicates={"keep": keep},
        )
        counts = {name: value for name, value in built.report.items() if name != "columns"}
        return counts, built.content


@lru_cache
def build_whole(keep: str) -> tuple[Record, bytes]:
    return build_parts(keep, {"a.csv": REPETITIVE})


@settings(deadline=None, max_examples=8)  # the machine is shared
@given(shuffled=st.permutations(REPETITIVE), cut=st.integers(0, len(REPETITIVE)))
@pytest.mark.parametrize("keep", ["one", "all"])
def test_the_order_of_rows_and_files_leaves_the_bytes_equal(
    keep: str, shuffled: list[Record], cut: int
) -> None:
    parts = {"b.csv": shuffled[:cut], "a.csv": shuffled[cut:]}
    assert build_parts(keep, parts) == build_whole(keep)


def test_the_rows_of_these_tests_repeat_each_other_in_every_way() -> None:
    assert build_whole("one")[0]["rejected_by_reason"] == {"duplicate": 5, "near_duplicate": 16}


def write_forms(records: Sequence[Record]) -> dict[str, dict[str, str | bytes]]:
    plain = [{k: v for k, v in r.items() if not isinstance(v, list)} for r in records]
    has_lists = plain != list(records)
    return {
        "jsonl": {"a.jsonl": to_jsonl(records)},
        "json": {"a.json": json.dumps({"results": list(records)})},
        "parquet": {"a.parquet": to_parquet(records)},
        "csv": {"a.csv": to_csv(records if has_lists else plain)},
    }


@pytest.mark.parametrize("form", ["json", "parquet", "csv"])
@pytest.mark.parametrize("identity", [("question", "correct_answer"), ()])
def test_the_file_format_leaves_the_bytes_equal(
    tmp_path: Path, form: str, identity: tuple[str, ...]
) -> None:
    forms = write_forms(make_quiz(30))
    plain = build(tmp_path / "1", forms["jsonl"], "trivia", QUIZ, identity=identity)
    other = build(tmp_path / "2", forms[form], "trivia", QUIZ, identity=identity)
    assert other.content == plain.content


@pytest.mark.parametrize("form", ["json", "parquet", "csv"])
def test_numbers_and_missing_values_give_the_same_ids_in_any_format(
    tmp_path: Path, form: str
) -> None:
    records = [
        {**row, "number": n, "ratio": n / 4, "note": None if n % 2 else "é &amp; ü"}
        for n, row in enumerate(make_qa(20))
    ]
    forms = write_forms(records)
    plain = build(tmp_path / "1", forms["jsonl"])
    other = build(tmp_path / "2", forms[form])
    assert [row["row_id"] for row in other.rows] == [row["row_id"] for row in plain.rows]


def test_white_space_and_entities_leave_the_bytes_equal(tmp_path: Path) -> None:
    rows = [{**row, "question": row["question"].replace("?", " & co?")} for row in make_quiz(40)]
    spaced = [
        {
            **row,
            "category": f" {row['category']}",
            "difficulty": row["difficulty"].upper(),
            "question": row["question"].replace(" ", "\u00a0 ").replace("&", "&amp;"),
            "correct_answer": f"{row['correct_answer']}\t",
        }
        for row in rows
    ]
    identity = ("question", "correct_answer")
    before = build(tmp_path / "1", rows, "trivia", QUIZ, identity=identity)
    after = build(tmp_path / "2", spaced, "trivia", QUIZ, identity=identity)
    assert after.content == before.content


def test_the_size_of_the_files_leaves_the_order_of_examples_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "PART_BYTES", 5_000)
    rows = [{**row, "rationale": "Because."} for row in make_qa(60)]
    templates = ("answer", "answer_with_rationale")
    unused = [{**row, "unused": "x" * 500} for row in rows]
    small = build(tmp_path / "1", rows, templates=templates, identity=("question",))
    large = build(tmp_path / "2", unused, templates=templates, identity=("question",))
    assert large.examples == small.examples


def test_several_parts_hold_the_same_examples_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(tmp_path / "1", REPETITIVE, "trivia", QUIZ)
    monkeypatch.setattr(order, "PART_BYTES", 700)
    many = build(tmp_path / "2", REPETITIVE, "trivia", QUIZ)
    by_id = [sorted(b.examples, key=lambda e: e["example_id"]) for b in (one, many)]
    assert by_id[0] == by_id[1]
    assert many.rejected == one.rejected
    assert many.report == one.report


@pytest.mark.parametrize("keep", ["one", "all"])
def test_used_rows_are_all_used_again(tmp_path: Path, keep: str) -> None:
    identity = ("question", "correct_answer")
    recipe: dict[str, Any] = {"identity": identity, "near_duplicates": {"keep": keep}}
    first = build(tmp_path / "1", REPETITIVE, "trivia", QUIZ, **recipe)
    assert first.report["rows_rejected"] > 5
    kept = [REPETITIVE[row["line"] - 1] for row in first.rows]
    second = build(tmp_path / "2", kept, "trivia", QUIZ, **recipe)
    assert second.report["rows_rejected"] == 0
    assert second.content == first.content
