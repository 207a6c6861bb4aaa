"""Published data sets through the parsers: nothing is lost, and nothing leaks.

Runs where FT_REAL_DATA names the folder. The counts were measured on the files that
docs/data_formats.md lists.
"""

from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline.config.recipe import Examples, Metrics
from ft_pipeline.config.sources import FilesSource, Format
from ft_pipeline.evaluation.metrics import score_quiz
from ft_pipeline.examples.render.build import RawSource, build_examples
from ft_pipeline.examples.render.export import (
    find_empty_texts,
    find_forged_turns,
    find_leaks,
    find_near_across_splits,
    read_examples,
)

TRIVIA = {
    "rows_read": 5250,
    "rows_used": 5237,
    "rejected_by_reason": {"duplicate": 3, "near_duplicate": 9, "not_renderable": 1},
}
STRATEGY = Format(header=("question", "answer", "rationale"), escapes=True)
FILES: dict[str, tuple[str, list[str], Format, dict[str, Any]]] = {
    "opentdb/opentdb_kaggle_shape.csv": (
        "trivia",
        ["quiz_question", "quiz_set"],
        Format(),
        TRIVIA,
    ),
    "opentdb/opentdb.json": ("trivia", ["quiz_question", "quiz_set"], Format(), TRIVIA),
    "medical_o1/medical_o1_198.json": (
        "cot",
        ["chain_of_thought"],
        Format(),
        {"rows_read": 198, "rows_used": 198, "examples": 198},
    ),
    "gsm8k/test.jsonl": (
        "qa",
        ["answer_with_rationale"],
        Format(),
        {"rows_read": 1319, "rows_used": 1319, "examples": 1319},
    ),
    "strategyqa/strategyqa_cot.tsv": (
        "qa",
        ["answer_with_rationale", "chain_of_thought"],
        STRATEGY,
        {"rows_read": 2061, "rows_used": 2060, "rejected_by_reason": {"duplicate": 1}},
    ),
    "nq_open/nq_open_dev.jsonl": (
        "qa",
        ["answer"],
        Format(),
        {"rows_read": 3610, "rows_used": 3610, "examples": 3610},
    ),
}


def build(folder: Path, root: Path, name: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    parser, templates, form, _ = FILES[name]
    identity = ("question", "correct_answer") if parser == "trivia" else ()
    declared = FilesSource(kind="files", path="x", identity=identity, format=form)
    given = {"source": "real", "parser": parser, "templates": templates}
    raw = RawSource(declared, {Path(name).name: root / name})
    return build_examples(Examples.model_validate({"inputs": [given]}), {"real": raw}, folder)


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_used_or_rejected_and_none_leaks(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    report = build(tmp_path / "built", real_data, name)
    counts = FILES[name][3]
    assert {key: report[key] for key in counts} == counts
    rows = read_examples(tmp_path / "built" / "meta" / "rows.parquet")
    rejected = read_jsonl(tmp_path / "built" / "meta" / "rejected.jsonl")
    assert len(rows) + len(rejected) == report["rows_read"]
    places = {(row["file"], row["line"]) for row in [*rows, *rejected]}
    assert len(places) == report["rows_read"]
    examples = tmp_path / "built" / "examples.parquet"
    assert find_leaks(examples) == find_empty_texts(examples) == find_forged_turns(examples) == []
    assert find_near_across_splits(tmp_path / "built" / "meta" / "rows.parquet", 0.8) == []


def test_both_shapes_of_the_same_questions_give_the_same_bytes(
    real_data: Path, tmp_path: Path
) -> None:
    names = ("opentdb/opentdb_kaggle_shape.csv", "opentdb/opentdb.json")
    for name in names:
        build(tmp_path / Path(name).name, real_data, name)
    from_csv, from_json = (
        (tmp_path / Path(name).name / "examples.parquet").read_bytes() for name in names
    )
    assert from_csv == from_json


def test_every_reference_answer_has_the_full_score(real_data: Path, tmp_path: Path) -> None:
    build(tmp_path / "built", real_data, "opentdb/opentdb.json")
    for example in read_examples(tmp_path / "built" / "examples.parquet"):
        scores = score_quiz(example["prompt"], example["completion"], Metrics())
        assert len(set(scores.values())) == 1, example
