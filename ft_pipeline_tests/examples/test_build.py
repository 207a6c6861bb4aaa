"""From files to examples: every row is accounted for, and only content decides the outcome."""

import csv
import io
import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.errors import PipelineError
from ft_pipeline.examples.build import build_examples
from ft_pipeline.examples.parse import REASONS, parse_list
from ft_pipeline.examples.rows import clean
from ft_pipeline.examples.sides import FIELDS, find_leaks, write_side
from ft_pipeline.examples.templates import parse_quiz_items
from ft_pipeline.jsonl import read_jsonl, write_jsonl
from ft_pipeline.recipe import Examples
from ft_pipeline_tests.conftest import SAMPLES

IDENTITY = {"trivia": ("question", "correct_answer"), "cot": ("Question",)}
COLUMNS = ("category", "difficulty", "question", "correct_answer", "incorrect_answers")


@dataclass(frozen=True)
class Built:
    """What `build_examples` wrote, and the report that it returned."""

    folder: Path
    report: dict[str, Any]

    @property
    def content(self) -> bytes:
        return (self.folder / "examples.jsonl").read_bytes()

    @property
    def examples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "examples.jsonl")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "meta" / "rows.jsonl")

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "meta" / "rejected.jsonl")


def build(
    folder: Path,
    files: Mapping[str, Path],
    templates: Mapping[str, tuple[str, ...]],
    fraction: float = 0.1,
) -> Built:
    """Build from one file a source; `templates` by source, whose name is its parser's."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    inputs = [{"source": s, "parser": s, "templates": templates[s]} for s in files]
    examples = Examples.model_validate(
        {"inputs": inputs, "split": {"validation_fraction": fraction}}
    )
    raw = {source: {file.name: file} for source, file in files.items()}
    return Built(folder, build_examples(examples, raw, IDENTITY, folder))


def build_trivia(
    folder: Path,
    content: str,
    name: str = "trivia.csv",
    templates: tuple[str, ...] = ("quiz_question", "quiz_set"),
) -> Built:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8", newline="")
    return build(folder, {"trivia": folder / name}, {"trivia": templates}, fraction=0.5)


def good_rows(count: int, category: str = "Numbers") -> list[list[str]]:
    return [
        [category, "easy", f"What is {n} + 1?", str(n + 1), json.dumps(["zero", "few", "many"])]
        for n in range(count)
    ]


def as_csv(rows: list[list[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The bundled samples with the templates of the default recipe."""
    return build(
        tmp_path_factory.mktemp("samples"),
        {"trivia": SAMPLES / "trivia.csv", "cot": SAMPLES / "cot.jsonl"},
        {"trivia": ("quiz_question", "quiz_set"), "cot": ("chain_of_thought",)},
    )


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
    assert set(samples.report["examples_by_task_and_side"]) == pairs


def test_no_question_of_the_bundled_samples_is_on_both_sides(samples: Built) -> None:
    assert find_leaks(samples.folder / "examples.jsonl") == []
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


def test_examples_are_sorted_by_an_id_that_is_theirs_alone(samples: Built) -> None:
    ids = [example["example_id"] for example in samples.examples]
    assert ids == sorted(set(ids))
    assert len(ids) == samples.report["examples"]


def test_the_place_of_a_row_is_its_line_in_the_file(samples: Built) -> None:
    lines = (SAMPLES / "cot.jsonl").read_text(encoding="utf-8").splitlines()
    thoughts = {e["source_rows"][0]: e for e in samples.examples if e["task"] == "chain_of_thought"}
    row = next(row for row in samples.rows if row["source"] == "cot")
    question = json.loads(lines[row["line"] - 1])["Question"]
    assert thoughts[row["row_id"]]["prompt"] == clean(question)


PLANTED = {
    "malformed_row": "General,easy,What?,x,[],one field too many",
    "empty_text": 'General,easy,,x,"[""a"", ""b"", ""c""]"',
    "missing_answer": 'General,easy,What is missing?,,"[""a"", ""b"", ""c""]"',
    "answer_among_wrong_ones": 'General,easy,What is twice?,A,"[""a"", ""b"", ""c""]"',
    "too_few_options": 'General,easy,What is short?,x,"[""a"", ""b""]"',
    "duplicate": 'Numbers,hard,What is 0 + 1?,1,"[""zero"", ""few"", ""none""]"',
    "not_renderable": 'General,easy,What is split?,x,"[""a; b"", ""c"", ""d""]"',
    "too_few_for_a_set": 'Alone,easy,What is alone?,x,"[""a"", ""b"", ""c""]"',
}


def test_a_row_is_planted_for_every_reason() -> None:
    assert list(PLANTED) == list(REASONS)


@pytest.mark.parametrize("reason", PLANTED)
def test_a_row_that_cannot_be_used_is_listed_with_its_place_and_reason(
    tmp_path: Path, reason: str
) -> None:
    text = as_csv(good_rows(30)) + PLANTED[reason] + "\n"
    built = build_trivia(tmp_path, text, templates=("quiz_set",))
    (rejected,) = built.rejected
    assert (rejected["reason"], rejected["meaning"]) == (reason, REASONS[reason])
    assert (rejected["source"], rejected["file"]) == ("trivia", "trivia.csv")
    # The planted row is the last, behind the header and 30 rows. Of two duplicates the first in
    # the order of their content is used: ["zero", "few", "many"] comes before ["zero", "few",
    # "none"], easy before hard.
    assert rejected["line"] == 32
    assert (rejected["row_id"] is None) == (reason == "malformed_row")
    assert built.report["rejected_by_reason"] == {reason: 1}


def test_all_planted_rows_together_are_accounted_for(tmp_path: Path) -> None:
    text = as_csv(good_rows(30)) + "\n".join(PLANTED.values()) + "\n"
    built = build_trivia(tmp_path, text, templates=("quiz_set",))
    found = {row["line"]: row["reason"] for row in built.rejected}
    assert found == dict(enumerate(REASONS, start=32))
    assert built.report["rows_read"] == 30 + len(REASONS)
    assert built.report["rows_used"] == 30


def test_a_lone_question_of_its_category_is_used_alone(tmp_path: Path) -> None:
    text = as_csv(good_rows(30)) + PLANTED["too_few_for_a_set"] + "\n"
    built = build_trivia(tmp_path, text, templates=("quiz_question", "quiz_set"))
    assert built.report["rows_rejected"] == 0


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="the sources have no rows"):
        build_trivia(tmp_path, as_csv([]))


@pytest.mark.parametrize(
    ("rows", "templates", "reason"),
    [
        ([["General", "easy", "", "x", "[]"]] * 4, ("quiz_question",), "4 × empty_text"),
        (
            [row for n in range(9) for row in good_rows(9, f"C{n}")[n : n + 1]],
            ("quiz_set",),
            "9 × too_few_for_a_set",
        ),
    ],
)
def test_rows_that_are_all_rejected_are_refused_with_the_reasons(
    tmp_path: Path, rows: list[list[str]], templates: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        build_trivia(tmp_path, as_csv(rows), templates=templates)
    message = str(caught.value)
    assert f"every one of the {len(rows)} rows was rejected: {reason}" in message
    assert "Check the parser and the columns of the source." in message


def test_white_space_entities_and_the_order_of_rows_leave_the_bytes_equal(tmp_path: Path) -> None:
    rows = good_rows(60)
    spaced = [
        [f" {c}", d.upper(), q.replace(" ", "  ").replace("+", "&#43;"), f"{a}\t", options]
        for c, d, q, a, options in rows
    ]
    shuffled = random.Random(0).sample(spaced, len(spaced))
    before = build_trivia(tmp_path / "before", as_csv(rows))
    after = build_trivia(tmp_path / "after", as_csv(shuffled))
    assert after.content == before.content


def test_the_file_format_leaves_the_bytes_equal(tmp_path: Path) -> None:
    rows = good_rows(60)
    records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    for record in records:
        record["incorrect_answers"] = json.loads(record["incorrect_answers"])
    before = build_trivia(tmp_path / "csv", as_csv(rows))
    as_json = json.dumps({"results": records})
    after = build_trivia(tmp_path / "json", as_json, name="trivia.json")
    assert after.content == before.content


def test_duplicates_that_differ_elsewhere_leave_the_bytes_equal_in_any_order(
    tmp_path: Path,
) -> None:
    rows = good_rows(40)
    others = [[c, "hard", q, a, '["none", "some", "all"]'] for c, _, q, a, _ in rows[:10]]
    contents = []
    for seed in range(4):
        shuffled = random.Random(seed).sample([*rows, *others], 50)
        built = build_trivia(tmp_path / str(seed), as_csv(shuffled))
        assert built.report["rejected_by_reason"] == {"duplicate": 10}
        contents.append(built.content)
    assert len(set(contents)) == 1


def test_questions_of_one_group_leave_the_bytes_equal_in_any_order(tmp_path: Path) -> None:
    # Another answer makes another row; the question is the same, and so is its hash in the sets.
    rows = [row for row in good_rows(30) for _ in range(2)]
    rows = [[*row[:3], f"{row[3]}{'!' * (n % 2)}", row[4]] for n, row in enumerate(rows)]
    before = build_trivia(tmp_path / "before", as_csv(rows))
    after = build_trivia(tmp_path / "after", as_csv(rows[::-1]))
    assert before.report["rows_used"] == 60
    assert after.content == before.content


def test_questions_that_differ_in_punctuation_stay_on_one_side(tmp_path: Path) -> None:
    rows = good_rows(40)
    variants = [[c, d, q.replace("?", "!").upper(), a, o] for c, d, q, a, o in rows]
    built = build_trivia(tmp_path, as_csv([*rows, *variants]))
    assert built.report["rows_used"] == 80
    assert len({row["group"] for row in built.rows}) == 40
    assert find_leaks(tmp_path / "examples.jsonl") == []


def test_a_new_row_leaves_the_side_of_every_other_row(tmp_path: Path) -> None:
    before = build_trivia(tmp_path / "before", as_csv(good_rows(60)))
    after = build_trivia(tmp_path / "after", as_csv(good_rows(66)))
    sides = {row["row_id"]: row["side"] for row in after.rows}
    assert {row["row_id"]: sides[row["row_id"]] for row in before.rows} == {
        row["row_id"]: row["side"] for row in before.rows
    }


def test_a_leak_is_found(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    write_jsonl(
        file,
        [
            {"side": "train", "groups": ["a", "b"]},
            {"side": "train", "groups": ["c"]},
            {"side": "val", "groups": ["d", "b"]},
        ],
    )
    assert find_leaks(file) == ["b"]


def test_a_side_holds_its_examples_with_what_a_trainer_reads(
    samples: Built, tmp_path: Path
) -> None:
    written = {
        side: write_side(samples.folder / "examples.jsonl", side, tmp_path / f"{side}.jsonl")
        for side in ("train", "val")
    }
    for side, chosen in written.items():
        assert read_jsonl(tmp_path / f"{side}.jsonl") == chosen
        assert all(tuple(example) == FIELDS for example in chosen)
    ids = {e["example_id"] for chosen in written.values() for e in chosen}
    assert ids == {e["example_id"] for e in samples.examples}
    assert len(written["train"]) + len(written["val"]) == len(samples.examples)


TEXTS = st.one_of(
    st.text(max_size=10),
    st.sampled_from(["Numbers", "a; b", "a, b", "Question: x", "True", "\ud83d", "&quot;a\nb"]),
)
ANYTHING = st.one_of(
    TEXTS,
    st.none(),
    st.integers(),
    st.lists(TEXTS, max_size=4),
    st.lists(TEXTS, min_size=3, max_size=3).map(json.dumps),
)


@settings(deadline=None, max_examples=60)  # the machine is shared
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, ANYTHING)), min_size=1, max_size=5))
def test_any_row_is_rejected_or_reads_back_from_its_examples(rows: list[dict[str, Any]]) -> None:
    planted = [dict(zip(COLUMNS, row, strict=True)) for row in good_rows(12)]
    with tempfile.TemporaryDirectory() as folder:
        lines = "\n".join(json.dumps(record) for record in [*planted, *rows])
        built = build_trivia(Path(folder), lines, name="trivia.jsonl")
        assert built.report["rows_read"] == 12 + len(rows)
        assert built.report["rows_read"] == len(built.rows) + len(built.rejected)
        assert {row["reason"] for row in built.rejected} <= set(REASONS)
        raw = {row["row_id"]: [*planted, *rows][row["line"] - 1] for row in built.rows}
        for example in built.examples:
            items = parse_quiz_items(example["completion"])
            for item, row_id in zip(items, example["source_rows"], strict=True):
                record = raw[row_id]
                assert item.question == clean(record["question"])
                assert item.correct_answer == clean(record["correct_answer"])
                wrong = map(clean, parse_list(record["incorrect_answers"]))
                assert item.incorrect_options == tuple(wrong)
                assert clean(record["category"]) == example["category"]
                assert f" about {example['category']} with " in example["prompt"]
