"""The split: which side each question goes to, and which questions form a set.

Both are decided by hashes of the question, so that new rows leave the rest where it was.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from ft_pipeline.errors import PipelineError
from ft_pipeline.recipe import Split

Side = Literal["train", "val"]
T = TypeVar("T")


def assign_sides(groups: Iterable[str], split: Split) -> dict[str, Side]:
    """Give each group (question) its side. Raises PipelineError where one side is empty."""
    unique = sorted(set(groups))
    if split.method == "hash":
        held_out = {g for g in unique if _fraction(split.seed, g) < split.validation_fraction}
    else:
        held_out = _hold_out_at_random(unique, split)
    if not held_out or len(held_out) == len(unique):
        side = "validation" if not held_out else "training"
        raise PipelineError(
            f"the {side} side of the split is empty: {len(unique)} questions at "
            f"examples.split.validation_fraction {split.validation_fraction}. Add rows, or change "
            "the fraction or examples.split.seed."
        )
    return {group: "val" if group in held_out else "train" for group in unique}


def form_sets(items: Sequence[tuple[str, T]], mean_size: int) -> list[list[T]]:
    """Cut items, given with their group, into sets of `mean_size` on average, at least two.

    Membership depends on hashes alone (content-defined chunking, as in LBFS, SOSP 2001): in the
    order of their hashes, a set ends after an item whose hash is divisible by the mean size, or at
    twice the mean size. A new item changes the set that it falls into, sometimes the next few: at
    a mean size of 3, up to two sets in four cases of five.
    """
    sets: list[list[T]] = []
    current: list[T] = []
    for group, item in sorted(items, key=lambda pair: _digest("set", pair[0])):
        current.append(item)
        ends = _digest("cut", group) % mean_size == 0 or len(current) == 2 * mean_size
        if ends and len(current) >= 2:
            sets.append(current)
            current = []
    if len(current) == 1 and sets:
        sets[-1] += current
    elif len(current) >= 2:
        sets.append(current)
    return sets


def _hold_out_at_random(groups: list[str], split: Split) -> set[str]:
    from sklearn.model_selection import train_test_split

    if len(groups) < 2:
        return set()
    fraction, seed = split.validation_fraction, split.seed
    try:
        _, held_out = train_test_split(groups, test_size=fraction, random_state=seed)
    except ValueError as error:
        raise PipelineError(f"examples.split: {error}.") from error
    return set(held_out)


def _fraction(seed: int, group: str) -> float:
    return _digest(str(seed), group) / 2**64


def _digest(salt: str, group: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}:{group}".encode()).digest()[:8], "big")
