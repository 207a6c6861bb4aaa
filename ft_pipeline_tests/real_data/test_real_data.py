"""Published data sets through the parsers: nothing is lost, and nothing leaks.

Runs where FT_REAL_DATA names a folder with `opentdb/` and `medical_o1/`. The counts were measured
on the dump of 2026-07-28 and the 198 rows of HuatuoGPT-o1's demo data.
"""

from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.evaluation.metrics import score_quiz
from ft_pipeline.examples.build import build_examples
from ft_pipeline.examples.sides import find_leaks
from ft_pipeline.jsonl import read_jsonl
from ft_pipeline.recipe import Examples, Metrics

TRIVIA_COUNTS = {
    "rows_read": 5250,
    "rows_used": 5246,
    "rows_rejected": 4,
    "rejected_by_reason": {"duplicate": 3, "not_renderable": 1},
    "examples": 6708,
    "examples_by_task_and_side": {
        "quiz_question train": 4731,
        "quiz_question val": 515,
        "quiz_set train": 1315,
        "quiz_set val": 147,
    },
    "questions_by_side": {"train": 4727, "val": 513},
}
COT_COUNTS = {
    "rows_read": 198,
    "rows_used": 198,
    "rows_rejected": 0,
    "rejected_by_reason": {},
    "examples": 198,
    "examples_by_task_and_side": {"chain_of_thought train": 176, "chain_of_thought val": 22},
    "questions_by_side": {"train": 176, "val": 22},
}
TEMPLATES = {"trivia": ("quiz_question", "quiz_set"), "cot": ("chain_of_thought",)}
IDENTITY = {"trivia": ("question", "correct_answer"), "cot": ("Question",)}


def build(folder: Path, parser: str, file: Path) -> dict[str, Any]:
    (folder / "meta").mkdir(parents=True)
    given = {"source": parser, "parser": parser, "templates": TEMPLATES[parser]}
    examples = Examples.model_validate({"inputs": [given]})
    return build_examples(examples, {parser: {file.name: file}}, IDENTITY, folder)


@pytest.mark.parametrize(
    ("parser", "name", "counts"),
    [
        ("trivia", "opentdb/opentdb_kaggle_shape.csv", TRIVIA_COUNTS),
        ("trivia", "opentdb/opentdb.json", TRIVIA_COUNTS),
        ("cot", "medical_o1/medical_o1_198.json", COT_COUNTS),
    ],
)
def test_every_row_is_used_or_rejected_and_none_leaks(
    real_data: Path, tmp_path: Path, parser: str, name: str, counts: dict[str, Any]
) -> None:
    report = build(tmp_path / "built", parser, real_data / name)
    assert {key: report[key] for key in counts} == counts
    used = read_jsonl(tmp_path / "built" / "meta" / "rows.jsonl")
    rejected = read_jsonl(tmp_path / "built" / "meta" / "rejected.jsonl")
    assert len(used) + len(rejected) == report["rows_read"]
    places = {(row["file"], row["line"]) for row in [*used, *rejected]}
    assert len(places) == report["rows_read"]
    assert find_leaks(tmp_path / "built" / "examples.jsonl") == []


def test_both_shapes_of_the_same_questions_give_the_same_bytes(
    real_data: Path, tmp_path: Path
) -> None:
    for name in ("opentdb_kaggle_shape.csv", "opentdb.json"):
        build(tmp_path / name, "trivia", real_data / "opentdb" / name)
    from_csv, from_json = (
        (tmp_path / name / "examples.jsonl").read_bytes()
        for name in ("opentdb_kaggle_shape.csv", "opentdb.json")
    )
    assert from_csv == from_json


def test_every_reference_answer_has_the_full_score(real_data: Path, tmp_path: Path) -> None:
    build(tmp_path, "trivia", real_data / "opentdb" / "opentdb.json")
    for example in read_jsonl(tmp_path / "examples.jsonl"):
        scores = score_quiz(example["prompt"], example["completion"], Metrics())
        assert len(set(scores.values())) == 1, example
