"""The training loop: trl's SFTTrainer over planned batches, with checkpoints that resume exactly.

The trainer provides the loop, the optimizer, the schedule, mixed precision and clipping. Done here:
the batches of each step (batches.py), the loss (losses.py), and after each step logging,
evaluation, checkpoints and stopping.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from trl import SFTTrainer

from ft_pipeline.base.activity import activity
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Training
from ft_pipeline.store.artifact_files import IGNORED
from ft_pipeline.worker.data.batches import (
    Batching,
    PlannedBatches,
    Record,
    collate,
    count_tokens,
    count_trained,
)
from ft_pipeline.worker.distillation.teacher import READ_BY_MODEL, TeacherSignal
from ft_pipeline.worker.hardware import trim_heap
from ft_pipeline.worker.losses import (
    completion_loss,
    find_body_and_head,
    require_body_and_head,
    select_trained,
    sum_losses,
)
from ft_pipeline.worker.models.parameters import (
    copy_trained,
    restore_trained,
    switch_to_evaluation,
)
from ft_pipeline.worker.shutdown import GracefulShutdown
from ft_pipeline.worker.training.checkpoints import Checkpoints
from ft_pipeline.worker.training.progress import Display, Progress

WEIGHTS_FILE = "weights.safetensors"
PROGRESS_FILE = "progress.json"
RESOLVED_FILE = "resolved.json"
EXAMPLE_LOSSES_FILE = "example_losses.safetensors"
SHOWN_IDS = 8
TRIM_STEPS = 5  # steps between two returns of the heap's free pages, on a CPU

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """The training data, and how it is divided."""

    records: Sequence[Record]
    validation: Sequence[Record]
    batching: Batching
    micro_batch_size: int
    pad_id: int
    teacher_signal: TeacherSignal | None = None  # what a teacher says; None: plain cross-entropy


@dataclass
class Monitor:
    """What happens around the steps."""

    progress: Progress
    checkpoints: Checkpoints
    display: Display
    should_shut_down: Callable[[], bool] = lambda: False
    expected_seconds: Callable[[float], None] = lambda seconds: None
    example_losses: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    resolved: dict[str, Any] = field(default_factory=dict)  # what a resumed run must do as well


class FineTuner(SFTTrainer):  # type: ignore[misc]  # trl has no types
    """Trains on the planned batches of `work`, and follows `monitor` after each step."""

    def __init__(self, settings: Training, work: Work, monitor: Monitor, **given: Any) -> None:
        super().__init__(**given)
        self.settings, self.work, self.monitor = settings, work, monitor
        self.model_accepts_loss_kwargs = True  # the loss is divided by all tokens of a step here
        if work.teacher_signal is None:
            self._parts = find_body_and_head(self.model)
        else:
            self._parts = require_body_and_head(self.model, "student")
        self._step_loss: torch.Tensor | float = 0.0
        self._step_trained = self._step_tokens = 0
        self._step_start = monotonic()
        self._batch_ids: list[list[int]] = []

    def train(self, *given: Any, **named: Any) -> Any:
        """Train to the end; the clock of the first step starts here."""
        self._step_start = monotonic()
        return super().train(*given, **named)

    # ---- Batches

    @property
    def batches(self) -> PlannedBatches:
        """The plan, which is the same for a resumed run."""
        return PlannedBatches(
            [len(record["input_ids"]) for record in self.work.records],
            self.settings.batch_size,
            self.work.micro_batch_size,
            self.work.batching,
            self.settings.seed,
            self._current_epoch,
        )

    def _current_epoch(self) -> int:
        accumulation = self.args.gradient_accumulation_steps
        updates = max(1, -(-len(self.batches) // accumulation))
        return int(self.state.global_step) // updates

    def get_train_dataloader(self) -> Any:
        loader = DataLoader(
            _Numbered(self.work.records),
            batch_sampler=self.batches,
            collate_fn=self._collate,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader) if self.args.world_size > 1 else loader

    def _collate(self, chosen: Sequence[tuple[int, Record]]) -> dict[str, torch.Tensor]:
        batch = collate([record for _, record in chosen], self.work.batching, self.work.pad_id)
        numbers = [number for number, _ in chosen]
        taught = self.work.teacher_signal.tensors(numbers) if self.work.teacher_signal else {}
        return {**batch, **taught, "examples": torch.tensor(numbers)}

    def collate_examples(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the micro-batch of these examples."""
        return self._collate([(number, self.work.records[number]) for number in numbers])

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: Any
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """Return a step's batches and its number of trained tokens, the divisor of each loss.

        Not left to transformers: on a GPU, unsloth replaces this, and nothing is counted.
        """
        batches = list(islice(epoch_iterator, num_batches))
        self._step_trained = sum(count_trained(batch) for batch in batches)
        self._step_tokens = sum(count_tokens(batch) for batch in batches)
        self._batch_ids = [batch["examples"].tolist() for batch in batches]
        return batches, torch.tensor(self._step_trained, device=device)

    # ---- Loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Return the micro-batch's loss: nats over its trained tokens ÷ those of the whole step."""
        examples = inputs.pop("examples")
        count = self._step_trained if num_items_in_batch is None else num_items_in_batch
        if self._parts is None:
            return model(**inputs, use_cache=False, num_items_in_batch=count).loss
        total, losses = self.compute_token_losses(inputs, self.work.teacher_signal)
        self._remember(losses, _number_rows(inputs), examples)
        return total / max(int(count), 1)

    def compute_token_losses(
        self, inputs: dict[str, torch.Tensor], teacher_signal: TeacherSignal | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss in nats, with its gradient, and each token's, float32[trained].

        Cross-entropy on the data, or with a teacher_signal, the distillation loss.
        """
        assert self._parts is not None
        body, head = self._parts
        fed = {name: inputs[name] for name in READ_BY_MODEL if name in inputs}
        with self.compute_loss_context_manager(), self._autocast():
            hidden = body(**fed, use_cache=False).last_hidden_state
            states, targets = select_trained(hidden, inputs["labels"])
            if teacher_signal is None:
                return completion_loss(states, targets, head)
            return sum_losses(states, head, teacher_signal.loss(inputs, targets))

    def _autocast(self) -> torch.autocast:
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16
        enabled = bool(self.args.bf16 or self.args.fp16)
        return torch.autocast(self.args.device.type, dtype=dtype, enabled=enabled)

    def _remember(self, losses: torch.Tensor, rows: torch.Tensor, examples: torch.Tensor) -> None:
        """Record each example's mean loss when it was last trained on."""
        count = len(examples)
        sums = torch.zeros(count, device=losses.device).index_add_(0, rows, losses.float())
        sizes = torch.bincount(rows, minlength=count).clamp(min=1)
        known = self.monitor.example_losses
        known[examples.to(known.device)] = (sums / sizes).to(known.device)

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*given, **named)
        self._step_loss = self._step_loss + loss
        return loss  # type: ignore[no-any-return]

    # ---- After each step

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, *given: Any, learning_rate: Any = None, **named: Any
    ) -> None:
        if self.state.global_step == self.monitor.progress.step:
            return  # called once more where an epoch ends
        norm = 0.0 if grad_norm is None else float(grad_norm)
        self._finish_step(norm, float(learning_rate or 0.0))

    def _finish_step(self, grad_norm: float, learning_rate: float) -> None:
        progress, settings = self.monitor.progress, self.settings
        progress.add_step(float(self._step_loss), self._step_trained, self._step_tokens)
        fault = progress.find_fault(settings.spike_factor)
        if fault is not None:
            raise PipelineError(self._explain_fault(fault))
        now = monotonic()
        progress.seconds += now - self._step_start
        self.monitor.display.advance(progress)
        self.monitor.expected_seconds(now - self._step_start)
        if progress.step % TRIM_STEPS == 0 and self.args.device.type == "cpu":
            trim_heap()
        last = self.state.global_step >= self.state.max_steps
        if progress.step % settings.logging_steps == 0 or last:
            record = progress.close_window(float(self.state.epoch), learning_rate, grad_norm)
            self.monitor.display.show(record)
        if settings.eval_steps and (progress.step % settings.eval_steps == 0 or last):
            self._evaluate_here()
        leaving = self.monitor.should_shut_down() and not last
        if leaving or (progress.step % settings.save_steps == 0 and not last) or self._is_best():
            self.save()
        if leaving:
            raise GracefulShutdown(
                f"asked to shut down at step {progress.step}; its checkpoint is written, and the "
                "same command continues from there"
            )
        self.monitor.expected_seconds(monotonic() - self._step_start)  # evaluation and saving too
        self._step_loss, self._step_start = 0.0, monotonic()

    def _evaluate_here(self) -> None:
        progress = self.monitor.progress
        record = progress.add_evaluation(self.measure_validation())
        self.monitor.display.show(record)
        patience = self.settings.early_stopping
        if patience is not None and progress.without_best >= patience:
            logger.info("early stopping: no lower loss in %d evaluations", patience)
            self.control.should_training_stop = True

    def _is_best(self) -> bool:
        progress = self.monitor.progress
        return self.settings.best_checkpoint and progress.best_step == progress.step

    def measure_validation(self) -> float:
        """Return the mean loss on the validation split in nats per trained token."""
        order = sorted(self.work.validation, key=lambda record: len(record["input_ids"]))
        total, trained, size = 0.0, 0, self.work.micro_batch_size
        begin = monotonic()
        scoring = activity("scoring val_tokens", len(order), "examples")
        with self.evaluating(), scoring as going:
            for start in range(0, len(order), size):
                batch = collate(order[start : start + size], "plain", self.work.pad_id)
                total += self.sum_loss(batch)
                trained += count_trained(batch)
                going.reach(min(start + size, len(order)))
                done = going.state.done / len(order)
                self.monitor.expected_seconds((monotonic() - begin) / done)
        return total / max(trained, 1)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and gradients off."""
        switch_to_evaluation(self.model)
        with torch.no_grad():  # not inference_mode: what is cached would have no backward later
            yield
        self.model.train()

    def sum_loss(self, batch: dict[str, torch.Tensor]) -> float:
        """Return a micro-batch's loss in nats, summed over its trained tokens."""
        inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
        if self._parts is None:
            return float(self.model(**inputs, use_cache=False).loss) * count_trained(inputs)
        return float(self.compute_token_losses(inputs)[0])

    def try_batch(self, numbers: Sequence[int]) -> None:
        """Go forward and back over the micro-batch of these examples; drop the gradients."""
        self.model.train()
        batch = self.collate_examples(numbers)
        del batch["examples"]
        inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
        if self._parts is None:
            loss = self.model(**inputs, use_cache=False).loss
        else:
            loss, _ = self.compute_token_losses(inputs, self.work.teacher_signal)
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    def _explain_fault(self, fault: str) -> str:
        ids = [self.work.records[n]["example_id"] for batch in self._batch_ids for n in batch]
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        last, step = self.monitor.checkpoints.find_last(), self.monitor.progress.step
        kept = f"Checkpoint {last} is kept" if last else "No checkpoint was written before it"
        return (
            f"training stopped at step {step}: {fault}. Examples of this step: "
            f"{', '.join(ids[:SHOWN_IDS])}{more} (`ft-pipeline examples show --id ID` prints "
            f"one). {kept}. Check these examples, lower training.learning_rate, or raise "
            "training.warmup_steps."
        )

    # ---- Checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step, and remove old ones."""
        monitor = self.monitor
        with monitor.checkpoints.writing(monitor.progress.step) as folder:
            save_file(copy_trained(self.model), folder / WEIGHTS_FILE)
            save_file({"losses": monitor.example_losses.cpu()}, folder / EXAMPLE_LOSSES_FILE)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            monitor.progress.write(folder / PROGRESS_FILE)
            (folder / RESOLVED_FILE).write_text(json.dumps(monitor.resolved), encoding="utf-8")
        monitor.checkpoints.remove_old(monitor.progress.best_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        raise AssertionError("checkpoints are written by save()")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        restore_trained(self.model, load_file(folder / WEIGHTS_FILE))


class _Numbered:
    """Records with their numbers, as a data set for the loader."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> tuple[int, Record]:
        return number, self._records[number]


def read_example_losses(checkpoint: Path) -> torch.Tensor:
    """Return the mean loss of each example when it was last trained on: float32[examples]."""
    return load_file(checkpoint / EXAMPLE_LOSSES_FILE)["losses"]


def _number_rows(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return each trained token's example number in the batch: int64[trained]."""
    trained = inputs["labels"][:, 1:] != IGNORED
    if "position_ids" not in inputs:
        return trained.nonzero()[:, 0]
    starts = (inputs["position_ids"][0] == 0).cumsum(0) - 1
    return starts[1:][trained[0]]
