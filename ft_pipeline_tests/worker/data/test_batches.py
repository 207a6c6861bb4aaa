"""The plan of an epoch: every example once, steps that a smaller micro-batch does not change."""

import pytest
import torch

from ft_pipeline.worker.data.batches import (
    Batching,
    collate,
    count_tokens,
    count_trained,
    cut_batches,
    pad,
    plan_epoch,
    split_batches,
)

LENGTHS = [(7 * n) % 61 + 3 for n in range(203)]
BATCHINGS: list[Batching] = ["plain", "grouped", "packed"]


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("size", [1, 4, 8, 203, 500])
def test_each_example_is_in_an_epoch_once(batching: Batching, size: int) -> None:
    plan = plan_epoch(LENGTHS, size, batching, seed=1, epoch=0)
    assert sorted(number for batch in plan for number in batch) == list(range(203))
    assert [len(batch) for batch in plan[:-1]] == [size] * (len(plan) - 1)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_an_epoch_is_decided_by_seed_and_number(batching: Batching) -> None:
    plans = [plan_epoch(LENGTHS, 4, batching, *of) for of in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2] != plans[3] != plans[0]


def test_grouped_batches_hold_less_padding() -> None:
    def padding(batching: Batching) -> float:
        plan = plan_epoch(LENGTHS, 4, batching, seed=1, epoch=0)
        padded = sum(max(LENGTHS[n] for n in batch) * len(batch) for batch in plan)
        return 1 - sum(LENGTHS) / padded

    assert padding("grouped") < 0.05 < 0.25 < padding("plain")


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_smaller_micro_batch_leaves_the_steps_as_they_are(batching: Batching) -> None:
    whole = plan_epoch(LENGTHS, 4, batching, seed=1, epoch=0)
    halves = split_batches(whole, 2)
    steps = [set(whole[i] + whole[i + 1]) for i in range(0, len(whole) - 1, 2)]
    fours = [halves[i : i + 4] for i in range(0, len(halves) - 3, 4)]
    again = [{number for batch in four for number in batch} for four in fours]
    assert again == steps[: len(again)]


RECORDS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8, 9], "labels": [8, 9]},
]


def test_padding_is_masked_and_not_trained() -> None:
    batch = collate(RECORDS, "plain", pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, 9, -100]]


def test_prompts_are_padded_on_the_left() -> None:
    batch = pad([[5, 6, 7], [8, 9], []], 1, "left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 8, 9], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_batches_hold_no_more_padded_tokens_than_fit() -> None:
    # 3 × 600 fit into 2048 and 4 × 600 do not; 2 × 1100 do not; 5000 is alone.
    assert [
        (part.start, part.stop) for part in cut_batches([500, 600, 550, 600, 1100, 5000, 3])
    ] == [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    assert [part.stop for part in cut_batches([1024, 1024])] == [2]
    assert list(cut_batches([])) == []


def test_packed_examples_begin_anew_and_do_not_predict_each_other() -> None:
    batch = collate(RECORDS, "packed", pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_tokens_are_counted_without_padding(batching: Batching) -> None:
    batch = collate(RECORDS, batching, pad_id=0)
    assert (count_tokens(batch), count_trained(batch)) == (5, 3)
    assert isinstance(batch["input_ids"], torch.Tensor)
