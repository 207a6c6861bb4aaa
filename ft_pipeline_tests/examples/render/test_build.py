"""From files to examples: every row is accounted for, with its place and reason."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.sources import Source
from ft_pipeline.examples.read.parse import REASONS
from ft_pipeline.examples.read.text import clean
from ft_pipeline.examples.render.build import RawSource
from ft_pipeline.examples.render.export import FIELDS, find_leaks
from ft_pipeline.examples.render.templates import parse_quiz_items
from ft_pipeline_tests.conftest import SAMPLES
from ft_pipeline_tests.examples.builds import (
    QUIZ,
    Built,
    Record,
    build,
    build_from,
    make_qa,
    make_quiz,
    read_sides,
    to_csv,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The bundled samples with the templates of the default recipe."""
    sources = {
        "trivia": RawSource(
            Source(identity=("question", "correct_answer")), {"t.csv": SAMPLES / "trivia.csv"}
        ),
        "cot": RawSource(Source(identity=("Question",)), {"c.jsonl": SAMPLES / "cot.jsonl"}),
    }
    inputs = [
        {"source": "trivia", "parser": "trivia", "templates": QUIZ},
        {"source": "cot", "parser": "cot", "templates": ["chain_of_thought"]},
    ]
    return build_from(tmp_path_factory.mktemp("samples"), sources, inputs, split={})


def test_the_rows_of_the_bundled_samples_are_accounted_for(samples: Built) -> None:
    counts = [samples.report[f"rows_{name}"] for name in ("read", "used", "rejected")]
    assert counts == [591, 588, 3]  # 453 trivia rows and 138 chains of thought
    assert samples.report["rejected_by_reason"] == {
        "answer_among_wrong_ones": 1,
        "duplicate": 1,
        "missing_answer": 1,
    }
    assert len(samples.rows) == 588
    assert len(samples.rejected) == 3


def test_the_bundled_samples_are_of_many_kinds(samples: Built) -> None:
    assert len(samples.report["examples_by_category"]) >= 8
    assert set(samples.report["examples_by_difficulty"]) == {"easy", "medium", "hard"}
    single = [e["completion"] for e in samples.examples if e["task"] == "quiz_question"]
    options = {len(parse_quiz_items(completion)[0].incorrect_options) for completion in single}
    assert options == {1, 3}  # true/false and multiple choice
    tasks = {"quiz_question", "quiz_set", "chain_of_thought"}
    pairs = {f"{task} {side}" for task in tasks for side in ("train", "val")}
    assert set(samples.report["examples_by_task_and_split"]) == pairs


def test_no_question_of_the_bundled_samples_is_in_both_splits(samples: Built) -> None:
    assert find_leaks(samples.folder / "examples.parquet") == []
    sides: dict[str, set[str]] = {}
    for row in samples.rows:
        sides.setdefault(row["group"], set()).add(row["side"])
    assert all(len(found) == 1 for found in sides.values())


def test_every_example_names_the_rows_that_it_was_made_of(samples: Built) -> None:
    rows = {row["row_id"]: row for row in samples.rows}
    assert len(rows) == len(samples.rows)
    for example in samples.examples:
        made_of = [rows[row_id] for row_id in example["source_rows"]]
        assert [row["group"] for row in made_of] == example["groups"]
        assert {row["side"] for row in made_of} == {example["side"]}
    used = {row_id for example in samples.examples for row_id in example["source_rows"]}
    assert used == set(rows)


def test_every_example_has_an_id_of_its_own(samples: Built) -> None:
    ids = {example["example_id"] for example in samples.examples}
    assert len(ids) == len(samples.examples) == samples.report["examples"]


def test_the_place_of_a_row_is_its_line_in_the_file(samples: Built) -> None:
    lines = (SAMPLES / "cot.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = {e["source_rows"][0]: e["prompt"] for e in samples.examples}
    rows = [row for row in samples.rows if row["source"] == "cot"]
    for row in rows:
        question = json.loads(lines[row["line"] - 1])["Question"]
        assert prompts[row["row_id"]] == row["question"]
        assert clean(row["question"]) == clean(question)


# One trivia row for each reason, put behind a header and 30 good rows.
PLANTED: dict[str, bytes] = {
    "malformed_row": b"General,easy,What?,x,[],one field too many",
    "undecodable": b'General,easy,What \x81\x8d?,x,"[""a"", ""b"", ""c""]"',
    "empty_text": b'General,easy,,x,"[""a"", ""b"", ""c""]"',
    "missing_answer": b'General,easy,What is missing?,,"[""a"", ""b"", ""c""]"',
    "unreadable_list": b'General,easy,What is cut off?,x,"[""a"", ""b"',
    "answer_among_wrong_ones": b'General,easy,What is twice?,A,"[""a"", ""b"", ""c""]"',
    "too_few_options": b'General,easy,What is short?,x,"[""a"", ""b""]"',
    "not_renderable": b'General,easy,What is split?,x,"[""a; b"", ""c"", ""d""]"',
    "duplicate": b'Houses,hard,Who lived in house0 of street0?,Person 0,"[""x"", ""y"", ""z""]"',
    "too_few_for_a_set": b'Alone,easy,What is alone?,x,"[""a"", ""b"", ""c""]"',
}
# Reasons that need another parser or more of the recipe; each has a test of its own below or in
# test_selection.py.
ELSEWHERE = {
    "unknown_label",
    "no_assistant_turn",
    "control_tokens",
    "forgotten",
    "near_duplicate",
    "contaminated",
    "not_sampled",
}


def plant(folder: Path, rows: Sequence[bytes]) -> Built:
    content = to_csv(make_quiz(30)).encode("utf-8") + b"".join(row + b"\n" for row in rows)
    identity = ("question", "correct_answer")
    return build(folder, {"t.csv": content}, "trivia", ["quiz_set"], identity=identity)


def test_there_is_a_test_for_every_reason() -> None:
    assert set(PLANTED) | ELSEWHERE == set(REASONS)


@pytest.mark.parametrize("reason", PLANTED)
def test_a_row_that_cannot_be_used_is_listed_with_its_place_and_reason(
    tmp_path: Path, reason: str
) -> None:
    built = plant(tmp_path, [PLANTED[reason]])
    (rejected,) = built.rejected
    assert (rejected["reason"], rejected["meaning"]) == (reason, REASONS[reason])
    # Of two duplicates the one with the smallest values is used: easy comes before hard.
    assert (rejected["source"], rejected["file"], rejected["line"]) == ("rows", "t.csv", 32)
    assert (rejected["row_id"] is None) == (reason in ("malformed_row", "undecodable"))
    assert built.report["rejected_by_reason"] == {reason: 1}
    assert built.report["rows_used"] == 30


def test_all_planted_rows_together_are_accounted_for(tmp_path: Path) -> None:
    built = plant(tmp_path, list(PLANTED.values()))
    assert built.reasons == dict(enumerate(PLANTED, start=32))
    assert built.report["rows_read"] == 30 + len(PLANTED)
    assert built.report["rows_used"] == len(built.rows) == 30


def test_a_duplicate_names_the_row_that_it_repeats(tmp_path: Path) -> None:
    built = build(tmp_path, [*make_qa(20), *make_qa(3)])
    used = {row["row_id"] for row in built.rows}
    assert built.report["rejected_by_reason"] == {"duplicate": 3}
    assert all(row["repeats"] == row["row_id"] in used for row in built.rejected)


def test_an_unusable_row_does_not_push_out_a_usable_one_with_the_same_id(tmp_path: Path) -> None:
    broken = {**make_quiz(1)[0], "incorrect_answers": ["a"]}
    built = build(
        tmp_path, [broken, *make_quiz(20)], "trivia", QUIZ, identity=("question", "correct_answer")
    )
    assert built.reasons == {1: "too_few_options"}
    assert built.report["rows_used"] == 20


def test_forgotten_rows_leave_the_examples(tmp_path: Path) -> None:
    before = build(tmp_path / "before", make_qa(30))
    gone = [row["row_id"] for row in before.rows[:4]]
    after = build(tmp_path / "after", make_qa(30), forgotten=[*gone, "0" * 32])
    assert {row["row_id"]: row["reason"] for row in after.rejected} == dict.fromkeys(
        gone, "forgotten"
    )
    kept = [e for e in before.examples if e["source_rows"][0] not in gone]
    assert after.examples == kept


def test_a_lone_question_of_its_category_is_used_alone(tmp_path: Path) -> None:
    rows = [*make_quiz(30), *make_quiz(1, start=99, category="Alone")]
    built = build(tmp_path, rows, "trivia", QUIZ)
    assert built.report["rows_rejected"] == 0


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    header = to_csv(make_quiz(1)).splitlines()[0] + "\n"
    with pytest.raises(PipelineError, match="the sources have no rows"):
        build(tmp_path, {"t.csv": header}, "trivia", QUIZ)


EMPTY = [{"question": "", "answer": "x"}] * 4


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"near_duplicates": {"threshold": None}},
        {"given": {"limit": 3}},
        {"split": {"method": "random"}},
    ],
)
def test_rows_that_are_all_rejected_are_refused_with_the_reasons(
    tmp_path: Path, recipe: Record
) -> None:
    with pytest.raises(PipelineError) as caught:
        build(tmp_path, EMPTY, **recipe)
    message = str(caught.value)
    assert "all 4 rows were rejected: 4 × empty_text" in message
    assert "Check the parser and the columns of the source." in message


def test_rows_that_are_in_no_set_are_refused_with_the_reason(tmp_path: Path) -> None:
    rows = [make_quiz(1, start=n, category=f"C{n}")[0] for n in range(9)]
    with pytest.raises(PipelineError, match=r"rejected: 9 × too_few_for_a_set"):
        build(tmp_path, rows, "trivia", ["quiz_set"])


def test_a_leak_is_found(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"side": "train", "groups": ["a", "b"]},
        {"side": "train", "groups": ["c"]},
        {"side": "val", "groups": ["d", "b"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "examples.parquet")
    assert find_leaks(tmp_path / "examples.parquet") == ["b"]


def test_a_split_holds_its_examples_with_what_a_trainer_reads(samples: Built) -> None:
    for side, lines in read_sides(samples).items():
        chosen = [e for e in samples.examples if e["side"] == side]
        assert lines == [{name: e[name] for name in FIELDS} for e in chosen]
