"""Sides are decided by hashes, so that new rows leave the rest where it was."""

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from sklearn.model_selection import train_test_split

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Split
from ft_pipeline.examples.select.split import assign_splits, draw_splits
from ft_pipeline_tests.examples.builds import Built, build, make_qa

METHODS = ["hash", "random"]


def make_groups(count: int) -> list[str]:
    return [hashlib.md5(str(n).encode("utf-8")).hexdigest()[:16] for n in range(count)]


GROUPS = make_groups(400)


def assign(groups: Sequence[str], split: Split) -> dict[str, str]:
    if split.method == "random":
        return dict(draw_splits(sorted(set(groups)), split))
    sides = assign_splits(pa.array(groups, pa.string()), split).to_pylist()
    return dict(zip(groups, sides, strict=True))


def hold_out(groups: Sequence[str], split: Split) -> set[str]:
    return {group for group, side in assign(groups, split).items() if side == "val"}


def test_the_hash_split_stays_when_the_data_grows() -> None:
    before, after = assign(GROUPS[:300], Split()), assign(GROUPS, Split())
    assert {group: after[group] for group in before} == before


@pytest.mark.parametrize("method", METHODS)
def test_a_split_does_not_depend_on_order_and_repetition(method: str) -> None:
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS)) + GROUPS[:50]
    split = Split(method=method)  # type: ignore[arg-type]
    assert assign(shuffled, split) == assign(GROUPS, split)


@pytest.mark.parametrize(
    ("method", "other"),
    [("random", 2), ("hash", 2), ("hash", 0), ("hash", -1), ("hash", 2**40), ("hash", 2**64)],
)
def test_another_seed_holds_out_other_questions(method: str, other: int) -> None:
    one, two = (hold_out(GROUPS, Split(method=method, seed=s)) for s in (1, other))  # type: ignore[arg-type]
    assert one != two


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_hash_split_holds_out_about_its_fraction(fraction: float) -> None:
    groups = make_groups(10_000)
    share = len(hold_out(groups, Split(validation_fraction=fraction))) / len(groups)
    # Standard deviation at most sqrt(0.5 * 0.5 / 10,000) = 0.005; four of them.
    assert share == pytest.approx(fraction, abs=0.02)


def test_a_larger_fraction_only_adds_to_what_the_hash_split_holds_out() -> None:
    nested = [hold_out(GROUPS, Split(validation_fraction=f)) for f in (0.1, 0.2, 0.5)]
    assert all(small < large for small, large in pairwise(nested))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.333])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_random_split_is_that_of_scikit_learn(fraction: float, seed: int) -> None:
    _, expected = train_test_split(sorted(GROUPS), test_size=fraction, random_state=seed)
    split = Split(method="random", validation_fraction=fraction, seed=seed)
    assert hold_out(GROUPS, split) == set(expected)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_random_split_gives_both_splits_something(count: int, fraction: float) -> None:
    split = Split(method="random", validation_fraction=fraction)
    assert set(assign(GROUPS[:count], split).values()) == {"train", "val"}


def build_split(folder: Path, count: int, **split: object) -> Built:
    return build(folder, make_qa(count), split=split)


@pytest.mark.parametrize(
    ("count", "split", "side"),
    [
        (5, {"validation_fraction": 1e-9}, "validation"),
        (5, {"validation_fraction": 1 - 1e-9}, "training"),
        (1, {"validation_fraction": 1e-9}, "validation"),
        (1, {"method": "random"}, "validation"),
    ],
)
def test_an_empty_split_is_refused_with_what_to_change(
    tmp_path: Path, count: int, split: dict[str, object], side: str
) -> None:
    with pytest.raises(PipelineError) as caught:
        build_split(tmp_path, count, **split)
    message = str(caught.value)
    assert message.startswith(f"the {side} split is empty: {count} questions")
    fraction = Split.model_validate(split).validation_fraction
    assert f"examples.split.validation_fraction {fraction}" in message
    assert "Add rows, or change the fraction or examples.split.seed." in message


def test_a_random_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    # ceil(0.9 * 2) = 2 of 2 held out
    with pytest.raises(PipelineError, match=r"^examples\.split: .*train set will be empty"):
        build_split(tmp_path, 2, method="random", validation_fraction=0.9)


def list_sides(built: Built) -> dict[str, str]:
    return {row["row_id"]: row["side"] for row in built.rows}


def test_a_new_row_leaves_the_split_of_every_other_row(tmp_path: Path) -> None:
    before = list_sides(build_split(tmp_path / "1", 60, validation_fraction=0.5))
    after = list_sides(build_split(tmp_path / "2", 70, validation_fraction=0.5))
    assert len(after) == 70
    assert {row_id: after[row_id] for row_id in before} == before


def test_a_random_split_of_rows_is_that_of_scikit_learn_over_their_questions(
    tmp_path: Path,
) -> None:
    rows = [*make_qa(60), *({**row, "answer": "Another"} for row in make_qa(20))]
    split = {"method": "random", "validation_fraction": 0.25, "seed": 7}
    built = build(tmp_path, rows, split=split, near_duplicates={"keep": "all"})
    assert built.report["rows_used"] == 80
    groups = sorted({row["group"] for row in built.rows})
    assert len(groups) == 60
    _, expected = train_test_split(groups, test_size=0.25, random_state=7)
    assert {row["group"] for row in built.rows if row["side"] == "val"} == set(expected)


@pytest.mark.parametrize("method", METHODS)
def test_questions_that_differ_in_punctuation_stay_in_one_split(
    tmp_path: Path, method: str
) -> None:
    rows = make_qa(40)
    variants = [{**row, "question": row["question"].replace("?", "!").upper()} for row in rows]
    recipe = {"near_duplicates": {"threshold": None}, "split": {"method": method}}
    built = build(tmp_path, [*rows, *variants], **recipe)
    assert built.report["rows_used"] == 80
    sides = {(row["group"], row["side"]) for row in built.rows}
    assert len(sides) == len({group for group, _ in sides}) == 40
