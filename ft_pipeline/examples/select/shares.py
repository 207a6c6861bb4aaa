"""The share of the training rows that a template gets, as SQL.

    {quiz_set: 0.25}  →  side = 'val' OR md5_number_lower('42:quiz_set:' || row_id) < 2**62

Each row is drawn by its own hash: new rows do not move others, and a larger share includes
everything in a smaller one. Validation rows use every template, so changing the mix changes neither
the validation split nor its scores.
"""

from collections.abc import Iterable

from ft_pipeline.config.recipe import ExampleInput
from ft_pipeline.examples.read.database import quote

HASHES = 2**64


def draw_rows(given: ExampleInput, template: str, seed: int) -> str:
    """Return the condition, over `row_id` and `side`, for a row to use a template."""
    share = given.shares.get(template, 1.0)
    if share == 1.0:
        return "true"
    drawn = f"md5_number_lower({quote(f'{seed}:{template}:')} || row_id)"
    return f"(side = 'val' OR {drawn} < {int(share * HASHES)}::UBIGINT)"


def draw_rows_of_any(given: ExampleInput, templates: Iterable[str], seed: int) -> str:
    """Return the condition for a row to use at least one of some templates."""
    return f"({' OR '.join(draw_rows(given, name, seed) for name in templates) or 'false'})"
