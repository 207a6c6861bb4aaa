"""Which examples share a forward pass, and the tensors it gets.

The plan of an epoch is a list of micro-batches of example numbers that depends only on seed and
epoch, so a resumed run finds its place by counting. `gradient_accumulation` consecutive
micro-batches make one optimizer step. If memory is short, micro-batches are split, which does not
change the steps.

    plan_epoch([30, 200, 28, 190], 2, "grouped", seed=42, epoch=0)  →  [[1, 3], [0, 2]]
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ft_pipeline.store.artifact_files import IGNORED

# Grouped: examples are sorted by length within so many micro-batches, as in transformers'
# LengthGroupedSampler, so that what is trained together still changes from epoch to epoch.
WINDOW = 50
# Padded tokens in a forward pass without gradients.
TOKENS_IN_BATCH = 2048

Batching = Literal["plain", "grouped", "packed"]
PaddingSide = Literal["left", "right"]
Record = dict[str, Any]


def plan_epoch(
    lengths: Sequence[int], batch_size: int, batching: Batching, seed: int, epoch: int
) -> list[list[int]]:
    """Return the micro-batches of an epoch; the last one may be short."""
    generator = np.random.default_rng([seed % 2**63, epoch])
    order = generator.permutation(len(lengths))
    if batching == "grouped":
        order = _group_by_length(order, np.asarray(lengths), batch_size, generator)
    return [
        order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)
    ]


def _group_by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, generator: np.random.Generator
) -> np.ndarray:
    """Sort windows by length, then shuffle whole micro-batches; a short one stays last."""
    window = WINDOW * batch_size
    whole = len(order) - len(order) % batch_size
    parts = [order[start : min(start + window, whole)] for start in range(0, whole, window)]
    by_length = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
    batches = np.concatenate([*by_length, order[:0]]).reshape(-1, batch_size)
    return np.concatenate([generator.permutation(batches).ravel(), order[whole:]])


def split_batches(batches: Sequence[list[int]], size: int) -> list[list[int]]:
    """Return micro-batches of at most `size` examples, in the same order."""
    return [batch[at : at + size] for batch in batches for at in range(0, len(batch), size)]


class PlannedBatches:
    """A batch sampler that yields the plan of the trainer's current epoch."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        micro_batch_size: int,
        batching: Batching,
        seed: int,
        current_epoch: Callable[[], int],
    ) -> None:
        self._plan = (lengths, batch_size, batching, seed)
        self._size = micro_batch_size
        self._current_epoch = current_epoch

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the micro-batches of an epoch."""
        return split_batches(plan_epoch(*self._plan, epoch), self._size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self._current_epoch()))

    def __len__(self) -> int:
        return len(self.plan(0))  # every epoch has the same number


def collate(records: Sequence[Record], batching: Batching, pad_id: int) -> dict[str, torch.Tensor]:
    """Return the tensors of one micro-batch.

    Padded on the right: input_ids, attention_mask, labels: int64[batch, longest]. Packed: one row
    without padding, input_ids, position_ids, labels: int64[1, all tokens]; positions restart with
    each example, which tells transformers to keep them apart.
    """
    if batching == "packed":
        ids = [torch.tensor(record["input_ids"]) for record in records]
        labels = [torch.tensor([IGNORED, *record["labels"][1:]]) for record in records]
        positions = [torch.arange(len(each)) for each in ids]
        return {
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat(positions)[None],
            "labels": torch.cat(labels)[None],
        }
    padded = pad([record["input_ids"] for record in records], pad_id)
    return {**padded, "labels": _pad([record["labels"] for record in records], IGNORED)}


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, side: PaddingSide = "right"
) -> dict[str, torch.Tensor]:
    """Return input_ids and attention_mask: int64[sequences, longest], on the CPU."""
    mask = [[1] * len(sequence) for sequence in sequences]
    return {"input_ids": _pad(sequences, pad_id, side), "attention_mask": _pad(mask, 0, side)}


def _pad(rows: Sequence[Sequence[int]], value: int, side: PaddingSide = "right") -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


def cut_batches(lengths: Sequence[int]) -> Iterator[slice]:
    """Group examples of these lengths, in order, into batches of at most TOKENS_IN_BATCH.

    A longer example is a batch of its own.
    """
    start, longest = 0, 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if number > start and (number - start + 1) * longest > TOKENS_IN_BATCH:
            yield slice(start, number)
            start, longest = number, length
    if lengths:
        yield slice(start, len(lengths))


def count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Return the number of real (not padding) tokens of a micro-batch."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def count_trained(batch: dict[str, torch.Tensor]) -> int:
    """Return the number of tokens with a loss in a micro-batch; the first of a row has none."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
