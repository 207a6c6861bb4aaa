"""Which split each question goes to.

Either a hash of the question decides, so that new rows leave all others in place, or scikit-learn
draws the split.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Split
from ft_pipeline.examples.select.partition import hex_to_uint64

SplitName = Literal["train", "val"]


def assign_splits(groups: pa.Array, split: Split) -> pa.Array:
    """Return the split of each question's group (16 hex characters) by a hash of seed and group.

    The hash is SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014). A question is in the
    validation split if the hash's highest 53 bits, as a number from 0 to 1, are below
    `validation_fraction`.
    """
    mixed = mix(hex_to_uint64(groups) ^ mix(np.array([split.seed % 2**64], np.uint64)))
    held_out = (mixed >> np.uint64(11)) * 2.0**-53 < split.validation_fraction
    return pc.if_else(pa.array(held_out), "val", "train")


def mix(values: np.ndarray) -> np.ndarray:
    """Return uint64 hashes of uint64 values: the finalizer of SplitMix64, a bijection."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def draw_splits(groups: list[str], split: Split) -> dict[str, SplitName]:
    """Split the questions with scikit-learn's `train_test_split` over the sorted groups.

    Raises PipelineError if there are too few for two splits.
    """
    from sklearn.model_selection import train_test_split

    if len(groups) < 2:
        raise explain_empty_split("validation", len(groups), split)
    fraction, seed = split.validation_fraction, split.seed
    try:
        _, held_out = train_test_split(sorted(groups), test_size=fraction, random_state=seed)
    except ValueError as error:
        raise PipelineError(f"examples.split: {error}.") from error
    chosen = set(held_out)
    return {group: "val" if group in chosen else "train" for group in groups}


def explain_empty_split(
    name: str, questions: int, split: Split, shares: bool = False
) -> PipelineError:
    """Return the error for a split (`training`, `validation`) without questions.

    `shares`: whether templates only take a share of the rows, which may be the reason.
    """
    return PipelineError(
        f"the {name} split is empty: {questions} questions with "
        f"examples.split.validation_fraction {split.validation_fraction}. Add rows, or change the "
        f"fraction{', the `shares` of the inputs' if shares else ''} or examples.split.seed."
    )
