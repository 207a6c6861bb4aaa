"""Prove before the first step that packed sequences do not see each other."""

import logging
from collections.abc import Callable, Sequence

import torch

from ft_pipeline.store.artifact_files import IGNORED
from ft_pipeline.worker.data.batches import Record, collate

# Nats a token; other kernels round otherwise, but a leak differs by far more (docs/decisions.md).
TOLERANCE = 1e-4

logger = logging.getLogger(__name__)

MeasureLoss = Callable[[dict[str, torch.Tensor]], float]


def keeps_apart(records: Sequence[Record], measure_loss: MeasureLoss, tolerance: float) -> bool:
    """Compare two examples in one sequence with the same two in separate ones.

    `measure_loss` returns the summed loss of a micro-batch in nats; dropout must be off.
    """
    pair = _choose_pair(records)
    packed = measure_loss(collate(pair, "packed", 0))
    alone = sum(measure_loss(collate([record], "plain", 0)) for record in pair)
    trained = sum(sum(label != IGNORED for label in record["labels"]) for record in pair)
    difference = abs(packed - alone) / max(trained, 1)
    logger.info(
        "packing: the loss of two packed examples differs by %.1e nats per token", difference
    )
    return difference <= tolerance


def _choose_pair(records: Sequence[Record]) -> list[Record]:
    """Return two short examples; a leak shows in any two."""
    return sorted(records, key=lambda record: len(record["input_ids"]))[:2]
