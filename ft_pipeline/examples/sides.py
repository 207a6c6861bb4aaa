"""One side of the split as JSONL: assets `train_set` and `val_set`.

One line of `train_set.jsonl`:

    {"prompt": "Generate a quiz question about…", "completion": "Question: …",
     "example_id": "5f0a…", "source_rows": ["0b1d…"], "task": "quiz_question"}
"""

from pathlib import Path
from typing import Any

from ft_pipeline.examples.split import Side
from ft_pipeline.jsonl import read_jsonl, write_jsonl

FIELDS = ("prompt", "completion", "example_id", "source_rows", "task")


def write_side(examples_file: Path, side: Side, target: Path) -> list[dict[str, Any]]:
    """Write the examples of one side, sorted by example_id, to `target`; return them."""
    examples = [e for e in read_jsonl(examples_file) if e["side"] == side]
    chosen = [{name: example[name] for name in FIELDS} for example in examples]
    write_jsonl(target, chosen)
    return chosen


def find_leaks(examples_file: Path) -> list[str]:
    """Return the groups (questions) that have examples on both sides; none is expected."""
    groups: dict[str, set[str]] = {"train": set(), "val": set()}
    for example in read_jsonl(examples_file):
        groups[example["side"]].update(example["groups"])
    return sorted(groups["train"] & groups["val"])
