"""Sides and sets are decided by hashes, so that new rows leave the rest where it was."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from sklearn.model_selection import train_test_split

from ft_pipeline.errors import PipelineError
from ft_pipeline.examples.split import assign_sides, form_sets
from ft_pipeline.recipe import Split

GROUPS = [f"question {n}" for n in range(400)]
METHODS = ["hash", "random"]


def held_out(groups: Sequence[str], split: Split) -> set[str]:
    return {group for group, side in assign_sides(groups, split).items() if side == "val"}


def test_the_hash_split_stays_when_the_data_grows() -> None:
    before, after = assign_sides(GROUPS[:300], Split()), assign_sides(GROUPS, Split())
    assert {group: after[group] for group in before} == before


@pytest.mark.parametrize("method", METHODS)
def test_a_split_does_not_depend_on_order_and_repetition(method: str) -> None:
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS)) + GROUPS[:50]
    split = Split(method=method)  # type: ignore[arg-type]
    assert assign_sides(shuffled, split) == assign_sides(GROUPS, split)


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_holds_out_other_questions(method: str) -> None:
    one, other = (held_out(GROUPS, Split(method=method, seed=s)) for s in (1, 2))  # type: ignore[arg-type]
    assert one != other


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_hash_split_holds_out_about_its_fraction(fraction: float) -> None:
    groups = [f"question {n}" for n in range(10_000)]
    share = len(held_out(groups, Split(validation_fraction=fraction))) / len(groups)
    # Standard deviation at most sqrt(0.5 * 0.5 / 10,000) = 0.005; four of them.
    assert share == pytest.approx(fraction, abs=0.02)


def test_a_larger_fraction_only_adds_to_what_the_hash_split_holds_out() -> None:
    nested = [held_out(GROUPS, Split(validation_fraction=f)) for f in (0.1, 0.2, 0.5)]
    assert all(small < large for small, large in pairwise(nested))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.333])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_random_split_is_that_of_scikit_learn(fraction: float, seed: int) -> None:
    _, expected = train_test_split(sorted(GROUPS), test_size=fraction, random_state=seed)
    split = Split(method="random", validation_fraction=fraction, seed=seed)
    assert held_out(GROUPS, split) == set(expected)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_random_split_gives_both_sides_something(count: int, fraction: float) -> None:
    split = Split(method="random", validation_fraction=fraction)
    assert set(assign_sides(GROUPS[:count], split).values()) == {"train", "val"}


@pytest.mark.parametrize(
    ("count", "split", "side"),
    [
        (5, Split(validation_fraction=1e-9), "validation"),
        (5, Split(validation_fraction=1 - 1e-9), "training"),
        (1, Split(validation_fraction=1e-9), "validation"),
        (1, Split(method="random"), "validation"),
    ],
)
def test_an_empty_side_is_refused_with_what_to_change(count: int, split: Split, side: str) -> None:
    with pytest.raises(PipelineError) as caught:
        assign_sides(GROUPS[:count], split)
    message = str(caught.value)
    assert message.startswith(f"the {side} side of the split is empty: {count} questions")
    assert f"examples.split.validation_fraction {split.validation_fraction}" in message
    assert "Add rows, or change the fraction or examples.split.seed." in message


def test_a_random_split_without_a_training_side_is_refused() -> None:
    split = Split(method="random", validation_fraction=0.9)  # ceil(0.9 * 2) = 2 of 2 held out
    with pytest.raises(PipelineError, match=r"^examples\.split: .*train set will be empty"):
        assign_sides(GROUPS[:2], split)


def form(groups: Sequence[str], mean_size: int) -> list[tuple[str, ...]]:
    return [tuple(members) for members in form_sets([(g, g) for g in groups], mean_size)]


@pytest.mark.parametrize("mean_size", [2, 3, 5, 20])
@pytest.mark.parametrize("count", [2, 3, 7, 40, 400])
def test_every_item_is_in_one_set_of_at_least_two(count: int, mean_size: int) -> None:
    sets = form(GROUPS[:count], mean_size)
    assert sorted(group for members in sets for group in members) == sorted(GROUPS[:count])
    # At twice the mean a set ends; a single item that is left at the end joins the last set.
    assert all(2 <= len(members) <= 2 * mean_size + 1 for members in sets)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_items_form_no_set(count: int) -> None:
    assert form(GROUPS[:count], 3) == []


def test_sets_do_not_depend_on_the_order_of_the_items() -> None:
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS))
    assert form(shuffled, 3) == form(GROUPS, 3)


@pytest.mark.parametrize(("mean_size", "mean"), [(2, 2.75), (3, 3.61), (5, 5.33), (20, 18.3)])
def test_the_mean_size_is_about_the_one_asked_for(mean_size: int, mean: float) -> None:
    # A set of at least two and at most 2m that ends with probability 1/m at every item from the
    # second on has 1 + m (1 - (1 - 1/m)^(2m - 1)) items on average: 2.75 for m = 2.
    sets = form([f"question {n}" for n in range(20_000)], mean_size)
    assert 20_000 / len(sets) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("mean_size", "mostly", "on_average"), [(2, 5, 3.0), (3, 3, 2.0), (5, 3, 2.0), (20, 3, 2.0)]
)
def test_a_new_item_changes_few_sets(mean_size: int, mostly: int, on_average: float) -> None:
    before = set(form(GROUPS, mean_size))
    changed = []
    for n in range(200):
        after = set(form([*GROUPS, f"new question {n}"], mean_size))
        changed.append(len(after - before))
    # The set that it falls into changes, and those behind it until an end falls on an old one.
    assert min(changed) >= 1
    assert sum(changed) / len(changed) <= on_average
    assert sum(count <= mostly for count in changed) >= 0.9 * len(changed)
