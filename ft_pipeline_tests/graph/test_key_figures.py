"""The one figure of an asset that a run's closing table shows."""

import pytest

from ft_pipeline.graph.key_figures import count_used_rows


@pytest.mark.parametrize(
    ("reasons", "shown"),
    [
        ({"duplicate": 1, "missing_answer": 2}, "330 examples, 3 rows rejected"),
        # What a share or a limit leaves out is no fault of the row.
        ({"duplicate": 3, "not_sampled": 275}, "330 examples, 3 rows rejected, 275 not sampled"),
        ({}, "330 examples, 0 rows rejected"),
    ],
)
def test_rows_that_were_not_sampled_are_told_from_rejected_ones(
    reasons: dict[str, int], shown: str
) -> None:
    metadata = {"dagster/row_count": 330, "rows_rejected": sum(reasons.values())}
    assert count_used_rows({**metadata, "rejected_by_reason": reasons}) == shown
