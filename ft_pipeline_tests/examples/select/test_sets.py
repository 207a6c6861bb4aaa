"""Sets are cut by hashes, so that new rows leave the rest where it was."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from ft_pipeline.examples.select.sets import form_sets
from ft_pipeline_tests.examples.builds import Built, build, make_quiz

GROUPS = [f"question {n}" for n in range(400)]


def draw(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode("utf-8")).digest()[:8], "big")


def form(groups: Sequence[str], mean_size: int, shelf: str = "") -> list[tuple[str, ...]]:
    """Form sets of questions on one shelf, in the order of their hashes."""
    ordered = sorted(groups, key=lambda group: draw(f"set:{group}"))
    rows = [(group, shelf, draw(f"cut:{group}") % mean_size == 0) for group in ordered]
    return [tuple(members) for members in form_sets(rows, mean_size)]


@pytest.mark.parametrize("mean_size", [2, 3, 5, 20])
@pytest.mark.parametrize("count", [2, 3, 7, 40, 400])
def test_every_row_is_in_one_set_of_at_least_two(count: int, mean_size: int) -> None:
    sets = form(GROUPS[:count], mean_size)
    assert sorted(group for members in sets for group in members) == sorted(GROUPS[:count])
    # At twice the mean a set ends; a single row that is left at the end joins the last set.
    assert all(2 <= len(members) <= 2 * mean_size + 1 for members in sets)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_form_no_set(count: int) -> None:
    assert form(GROUPS[:count], 3) == []


@pytest.mark.parametrize("ends", [True, False])
def test_a_set_ends_with_its_shelf(ends: bool) -> None:
    rows = [(f"{shelf}{n}", shelf, ends) for shelf in "abcd" for n in range("abcd".index(shelf))]
    # One row on shelf b is in no set; two on c and three on d are one set each.
    assert list(form_sets(rows, 3)) == [["c0", "c1"], ["d0", "d1", "d2"]]


@pytest.mark.parametrize(("mean_size", "mean"), [(2, 2.75), (3, 3.61), (5, 5.33), (20, 18.3)])
def test_the_mean_size_is_about_the_one_asked_for(mean_size: int, mean: float) -> None:
    # A set of at least two and at most 2m that ends with probability 1/m at every row from the
    # second on has 1 + m (1 - (1 - 1/m)^(2m - 1)) rows on average: 2.75 for m = 2.
    sets = form([f"question {n}" for n in range(20_000)], mean_size)
    assert 20_000 / len(sets) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("mean_size", "mostly", "on_average"), [(2, 5, 3.0), (3, 3, 2.5), (5, 4, 2.5), (20, 3, 2.0)]
)
def test_a_new_row_changes_few_sets(mean_size: int, mostly: int, on_average: float) -> None:
    before = set(form(GROUPS, mean_size))
    changed = []
    for n in range(100):
        after = set(form([*GROUPS, f"new question {n}"], mean_size))
        changed.append(len(after - before))
    # The set that it falls into changes, and those behind it until an end falls on an old one.
    assert min(changed) >= 1
    assert sum(changed) / len(changed) <= on_average
    assert sum(count <= mostly for count in changed) >= 0.9 * len(changed)


def build_sets(folder: Path, count: int) -> Built:
    rows = [row for n in range(count) for row in make_quiz(1, n, "Even" if n % 2 else "Odd")]
    random.Random(count).shuffle(rows)
    return build(folder, rows, "trivia", ["quiz_set"], identity=("question",))


def test_a_set_is_of_one_split_and_one_category(tmp_path: Path) -> None:
    built = build_sets(tmp_path, 200)
    rows = {row["row_id"]: row for row in built.rows}
    for example in built.examples:
        members = [rows[row_id] for row_id in example["source_rows"]]
        assert {row["side"] for row in members} == {example["side"]}
        numbers = {int(row["question"].rsplit("street")[1].rstrip("?")) % 2 for row in members}
        assert numbers == {1 if example["category"] == "Even" else 0}
        assert example["prompt"] == (
            f"Generate a set of {len(members)} quiz questions about {example['category']} with "
            "varying difficulty levels."
        )
        places = [example["completion"].find(row["question"]) for row in members]
        assert places == sorted(places)
        assert places[0] == len("Question 1: ")


def test_a_new_row_leaves_most_examples_of_sets_equal(tmp_path: Path) -> None:
    before, after = build_sets(tmp_path / "1", 200), build_sets(tmp_path / "2", 202)
    old, new = ({e["example_id"] for e in built.examples} for built in (before, after))
    assert len(old - new) <= 6  # at mean size 3, a new row changes at most three sets mostly
    assert len(old) > 40
