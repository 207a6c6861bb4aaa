"""Packed sequences do not see each other, and where they would, that is found before the start."""

from typing import Any

import pytest
import torch

from ft_pipeline.worker.data.batches import collate
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.losses import completion_loss, find_body_and_head, select_trained
from ft_pipeline.worker.training.packing import TOLERANCE, keeps_apart
from ft_pipeline_tests.worker.conftest import WorkerInputs


@pytest.fixture(scope="module")
def model(inputs: WorkerInputs) -> Any:
    from ft_pipeline.worker.models.loading import load_base

    return load_base(inputs.base_model, "none", True, torch.float32).eval()


def measure(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> float:
    found = find_body_and_head(model)
    assert found is not None
    body, head = found
    labels = batch.pop("labels")
    with torch.no_grad():
        hidden = body(**batch, **options).last_hidden_state
        return float(completion_loss(*select_trained(hidden, labels), head)[0])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_packed_loss_is_the_loss_of_the_examples_alone(
    inputs: WorkerInputs, model: Any, count: int
) -> None:
    records = read_tokens(inputs.train_tokens)[:count]
    packed = measure(model, collate(records, "packed", 0), use_cache=False)
    alone = sum(measure(model, collate([r], "plain", 0), use_cache=False) for r in records)
    trained = sum(label != -100 for r in records for label in r["labels"][1:])
    assert abs(packed - alone) / trained < TOLERANCE


def test_sequences_that_see_each_other_are_found_out(inputs: WorkerInputs, model: Any) -> None:
    """Without their positions examples in a row are one long text, as transformers sees it."""
    records = read_tokens(inputs.train_tokens)

    def apart(batch: dict[str, torch.Tensor]) -> float:
        return measure(model, batch, use_cache=False)

    def leaking(batch: dict[str, torch.Tensor]) -> float:
        batch.pop("position_ids", None)
        return measure(model, batch, use_cache=False)

    assert keeps_apart(records, apart, TOLERANCE)
    assert not keeps_apart(records, leaking, TOLERANCE)
