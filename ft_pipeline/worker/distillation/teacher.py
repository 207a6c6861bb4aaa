"""The teacher's side of a distillation: stored answers by example, or the teacher in the loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Distillation
from ft_pipeline.process.tasks import DistillationInputs
from ft_pipeline.store.artifact_files import LOGITS_EXAMPLES_FILE, LOGITS_FILE, TAIL_MASS
from ft_pipeline.worker.data.batches import Record
from ft_pipeline.worker.distillation.losses import StoredAnswers, online_loss, stored_loss
from ft_pipeline.worker.distillation.teacher_logits import count_positions, key_of, read_arrow
from ft_pipeline.worker.hardware import choose_dtype
from ft_pipeline.worker.losses import LogitLoss, require_body_and_head, select_trained
from ft_pipeline.worker.models.model_spec import load_model
from ft_pipeline.worker.models.vocabulary import count_shared_vocabulary, require_room

TEACHER = "teacher_"
READ_BY_MODEL = ("input_ids", "attention_mask", "position_ids")


class TeacherSignal:
    """The trainer's interface: extra tensors for a batch, and the loss of its logits."""

    def __init__(self, settings: Distillation, vocab_size: int) -> None:
        self.settings, self.vocab_size = settings, vocab_size

    def tensors(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the extra tensors of a micro-batch of these examples."""
        return {}

    def loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> LogitLoss:
        """Return the loss of a micro-batch's logits. `targets`: int64[trained]."""
        raise AssertionError("of a stored or an online teacher")


class StoredSignal(TeacherSignal):
    """Answers from a teacher_logits artifact, mapped into memory."""

    def __init__(
        self, settings: Distillation, vocab_size: int, artifact: Path, records: Sequence[Record]
    ) -> None:
        """Raises PipelineError if the answers belong to other tokens, or are incomplete."""
        super().__init__(settings, vocab_size)
        examples = read_arrow(artifact / LOGITS_EXAMPLES_FILE)
        self._positions = read_arrow(artifact / LOGITS_FILE)
        found = {
            example: (key, count)
            for example, key, count in zip(*examples.to_pydict().values(), strict=True)
        }
        starts = np.cumsum([0, *examples["positions"].to_pylist()])
        if starts[-1] != len(self._positions):
            raise PipelineError(
                f"{artifact}: {LOGITS_EXAMPLES_FILE} lists {starts[-1]} positions, but "
                f"{LOGITS_FILE} has {len(self._positions)}, so it is truncated. Rebuild "
                "teacher_logits with --force teacher_logits."
            )
        start_of = dict(zip(found, starts.tolist(), strict=False))
        self._parts: list[tuple[int, int]] = []
        for record in records:
            example, count = record["example_id"], count_positions(record)
            if found.get(example) != (key_of(record), count):
                what = "other tokens" if example in found else "no answers"
                raise PipelineError(
                    f"{artifact}: has {what} for example {example} of train_tokens. Teacher "
                    "logits belong to the tokens they were made from; rebuild teacher_logits."
                )
            self._parts.append((start_of[example], count))

    def tensors(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        parts = [self._positions.slice(*self._parts[number]) for number in numbers]
        table = pa.concat_tables(parts).combine_chunks()
        k = table.schema.field("ids").type.list_size
        arrays = {
            name: _values(table[name]).reshape(len(table), -1) for name in ("ids", "log_probs")
        }
        return {
            f"{TEACHER}ids": torch.from_numpy(arrays["ids"].astype(np.int64)).reshape(-1, k),
            f"{TEACHER}log_probs": torch.from_numpy(arrays["log_probs"].astype(np.float32)).reshape(
                -1, k
            ),
            f"{TEACHER}tail_mass": torch.from_numpy(table[TAIL_MASS].to_numpy().astype(np.float32)),
        }

    def loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> LogitLoss:
        names = ("ids", "log_probs", "tail_mass")
        answers = StoredAnswers(*(inputs[f"{TEACHER}{name}"] for name in names))
        return stored_loss(targets, answers, self.settings, self.vocab_size)


class OnlineSignal(TeacherSignal):
    """A teacher that reads every micro-batch together with the student."""

    def __init__(self, settings: Distillation, vocab_size: int, teacher: Any) -> None:
        """Raises PipelineError if the teacher changes its logits after its head."""
        super().__init__(settings, vocab_size)
        self._body, self._head = require_body_and_head(teacher, "teacher")
        teacher.requires_grad_(False)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def loss(self, inputs: dict[str, torch.Tensor], targets: torch.Tensor) -> LogitLoss:
        read = {name: inputs[name] for name in READ_BY_MODEL if name in inputs}
        with _own_dtype(targets):
            hidden = self._body(**read, use_cache=False).last_hidden_state
        states, _ = select_trained(hidden, inputs["labels"])
        return online_loss(targets, states, self._answer, self.settings, self.vocab_size)

    def _answer(self, states: torch.Tensor) -> torch.Tensor:
        with _own_dtype(states):
            return self._head(states)


def _own_dtype(tensor: torch.Tensor) -> torch.autocast:
    """Let the teacher compute in its own dtype, not in the student's autocast dtype."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_vocabulary(distillation: DistillationInputs, student: Path) -> int:
    """Return the size of the relevant vocabulary. Raises VocabularyMismatch; loads no model."""
    teacher = (
        distillation.vocabulary_of
        if distillation.teacher is None
        else distillation.teacher.base_model
    )
    vocab_size = count_shared_vocabulary(distillation.vocabulary_of, teacher)
    require_room(student, vocab_size, "distillation.student")
    return vocab_size


def open_teacher_signal(
    distillation: DistillationInputs, vocab_size: int, records: Sequence[Record]
) -> TeacherSignal:
    """Return the stored answers, or load the teacher. Raises PipelineError."""
    if distillation.logits is not None:
        return StoredSignal(distillation.settings, vocab_size, distillation.logits, records)
    assert distillation.teacher is not None, "a distillation has logits or a teacher"
    teacher = load_model(distillation.teacher, choose_dtype(distillation.teacher.precision))
    return OnlineSignal(distillation.settings, vocab_size, teacher)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0)
