"""One training: from its start, or its last checkpoint, to the saved model."""

import json
import logging
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, PrinterCallback

from ft_pipeline.base.activity import activity
from ft_pipeline.base.hashing import META
from ft_pipeline.base.json_files import write_json
from ft_pipeline.config.steps import plan_steps
from ft_pipeline.process.tasks import TrainTask
from ft_pipeline.store.artifact_files import METRICS_FILE
from ft_pipeline.worker.data.batches import Batching, Record
from ft_pipeline.worker.distillation.teacher import TeacherSignal
from ft_pipeline.worker.hardware import free_memory
from ft_pipeline.worker.models.methods import turn_on_checkpointing
from ft_pipeline.worker.models.parameters import copy_trained, restore_trained
from ft_pipeline.worker.models.saving import loads_again, save_model, write_worst_examples
from ft_pipeline.worker.shutdown import ShutdownRequest
from ft_pipeline.worker.training.arguments import make_arguments, record_arguments
from ft_pipeline.worker.training.checkpoints import Checkpoints, step_of
from ft_pipeline.worker.training.memory import Fallback
from ft_pipeline.worker.training.packing import TOLERANCE, keeps_apart
from ft_pipeline.worker.training.progress import Display, Progress
from ft_pipeline.worker.training.trainer import (
    PROGRESS_FILE,
    RESOLVED_FILE,
    WEIGHTS_FILE,
    FineTuner,
    Monitor,
    Work,
    read_example_losses,
)

ARGUMENTS_FILE = f"{META}/trainer_arguments.json"
WORST_FILE = f"{META}/worst_examples.jsonl"
WORST = 10

logger = logging.getLogger(__name__)


class Session:
    """The training of one task with one loaded model."""

    def __init__(
        self,
        task: TrainTask,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        records: list[Record],
        validation: list[Record],
        shutdown: ShutdownRequest,
        teacher_signal: TeacherSignal | None = None,
    ) -> None:
        self.task, self.settings = task, task.settings
        self.model, self.tokenizer, self.dtype = model, tokenizer, dtype
        self.records, self.validation, self.shutdown = records, validation, shutdown
        self.teacher_signal = teacher_signal
        self.steps = plan_steps(self.settings, len(records))
        self.initial = copy_trained(model)
        self.progress = Progress()
        self.checkpoints = Checkpoints(task.checkpoints, self.settings.keep_checkpoints)
        self.resumed_from: int | None = None
        self.batching: Batching = "plain"
        self.fallback: Fallback | None = None
        self._example_losses = torch.zeros(len(records))
        logger.info("training: %s", self.steps)
        for note in self.steps.notes:
            logger.info("note: %s", note)

    def checkpointed_fallback(self) -> Fallback | None:
        """Return the memory fallback that wrote the last checkpoint."""
        last = self.checkpoints.find_last()
        return Fallback(**_read_resolved(last)["fallback"]) if last else None

    def train(self, fallback: Fallback) -> None:
        """Train to the end with one memory fallback.

        Raises PipelineError for a loss that is not a number, GracefulShutdown when asked to end.
        """
        self.fallback = fallback
        checkpoint = self.checkpoints.find_last()
        restore_trained(self.model, self.initial)
        if fallback.gradient_checkpointing and not self.settings.gradient_checkpointing:
            turn_on_checkpointing(self.model)
        self.progress = Progress()
        if checkpoint is not None:
            self.progress = Progress.read(checkpoint / PROGRESS_FILE)
            self.resumed_from = step_of(checkpoint)
            self._example_losses = read_example_losses(checkpoint)
            logger.info("continuing after step %d: %s", self.resumed_from, checkpoint)
        with tempfile.TemporaryDirectory(prefix="ft-pipeline-trainer-") as scratch:
            trainer = self._make_trainer(fallback, checkpoint, Path(scratch))
            if checkpoint is None:
                self._try_longest(trainer)
            with trainer.monitor.display.showing(self.progress):
                if checkpoint is not None and self._is_over():  # early stopping, unpublished
                    restore_trained(self.model, load_file(checkpoint / WEIGHTS_FILE))
                else:
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            self._example_losses = trainer.monitor.example_losses.cpu()
        if self.settings.best_checkpoint and self.progress.best_step is not None:
            best = self.checkpoints.of_step(self.progress.best_step)
            restore_trained(self.model, load_file(best / WEIGHTS_FILE))

    def _is_over(self) -> bool:
        patience = self.settings.early_stopping
        stopped = patience is not None and self.progress.without_best >= patience
        return stopped or self.progress.step >= self.steps.steps

    def _make_trainer(
        self, fallback: Fallback, checkpoint: Path | None, scratch: Path
    ) -> FineTuner:
        self.batching = self._first_choice(checkpoint)
        arguments = make_arguments(self.settings, fallback, self.dtype, scratch)
        recorded = record_arguments(arguments)
        write_json(self.task.output / ARGUMENTS_FILE, recorded, sort_keys=True, default=str)
        monitor = Monitor(
            self.progress,
            self.checkpoints,
            Display(self.task.output / METRICS_FILE, self.steps.steps),
            self.shutdown,
            self.shutdown.expect,
            self._example_losses.to(arguments.device),
        )
        pad_id = int(self.tokenizer.pad_token_id or 0)
        work = Work(
            self.records,
            self.validation,
            self.batching,
            fallback.batch_size,
            pad_id,
            self.teacher_signal,
        )
        columns = {n: [r[n] for r in self.records[:2]] for n in ("input_ids", "labels")}
        trainer = FineTuner(
            self.settings,
            work,
            monitor,
            model=self.model,
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_dict(columns),  # trl looks at it; the loader is ours
            args=arguments,
        )
        trainer.remove_callback(PrinterCallback)
        # Undoes trl's rounding of adapters on quantized bases to bf16.
        restore_trained(self.model, self.initial)
        if checkpoint is None and self.batching == "packed" and not self._packs_apart(trainer):
            logger.warning("packed sequences would see each other here; using grouped instead")
            self.batching = "grouped"
            trainer.work = replace(work, batching="grouped")
        monitor.resolved = {"fallback": asdict(fallback), "batching": self.batching}
        return trainer

    def _first_choice(self, checkpoint: Path | None) -> Batching:
        if checkpoint is not None:
            return _read_resolved(checkpoint)["batching"]  # type: ignore[no-any-return]
        asked = self.settings.batching
        return "grouped" if asked == "auto" else asked

    def _packs_apart(self, trainer: FineTuner) -> bool:
        tolerance = TOLERANCE if self.dtype == torch.float32 else 100 * TOLERANCE
        with trainer.evaluating():
            return keeps_apart(self.records, trainer.sum_loss, tolerance)

    def _try_longest(self, trainer: FineTuner) -> None:
        """Go forward and back over the longest micro-batch, so that too little memory shows now."""
        states = torch.random.get_rng_state(), torch.cuda.get_rng_state_all()
        lengths = [len(record["input_ids"]) for record in self.records]
        longest = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        assert self.fallback is not None
        trainer.try_batch(longest[: self.fallback.batch_size])
        torch.random.set_rng_state(states[0])
        torch.cuda.set_rng_state_all(states[1])

    def free_memory(self) -> None:
        """Free what a failed fallback held."""
        self.model.zero_grad(set_to_none=True)
        free_memory()

    def summarize(self) -> dict[str, Any]:
        """Return the run's figures. Losses are means over the first and last tenth of the log."""
        records = [record for record in self.progress.records if "loss" in record]
        losses = [record["loss"] for record in records]
        tenth = max(1, len(losses) // 10)
        assert self.fallback is not None
        report = {
            "method": self.settings.method,
            "quantization": self.settings.base_quantization,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batching": self.batching,
            **asdict(self.fallback),
            "effective_batch": self.steps.effective_batch,
            "steps_an_epoch": self.steps.steps_an_epoch,
            "notes": "; ".join(self.steps.notes) or "none",
            "steps": self.progress.step,
            "first_loss": sum(losses[:tenth]) / tenth,
            "final_loss": sum(losses[-tenth:]) / tenth,
            "loss_is_finite": all(math.isfinite(loss) for loss in losses),
            "tokens": self.progress.tokens,
            "seconds_training": round(self.progress.seconds, 2),
            "tokens_per_second": round(self.progress.tokens / max(self.progress.seconds, 1e-9), 1),
            "resumed_from_step": self.resumed_from or 0,
            "adapter_change": self._measure_change(),
            "trainable_parameters": sum(p.numel() for p in self.initial.values()),
        }
        if self.progress.best_loss is not None:
            report |= {"best_step": self.progress.best_step, "best_loss": self.progress.best_loss}
        return report

    def _measure_change(self) -> float:
        """Return the L2 norm of (trained − initial) over all trained parameters."""
        trained = copy_trained(self.model)
        squares = [(trained[n].float() - p.float()).square().sum() for n, p in self.initial.items()]
        return float(torch.stack(squares).sum().sqrt())

    def save(self) -> dict[str, Any]:
        """Write the model and the worst examples; return whether the model loads again."""
        output, method = self.task.output, self.settings.method
        worst = write_worst_examples(self.records, self._example_losses, WORST, output / WORST_FILE)
        with activity("saving the model"):
            save_model(self.model, self.tokenizer, method, self.task.base_model, output)
        with activity("checking that the saved model loads"):
            loads = loads_again(self.model, output)
        return {"adapter_loads": loads, "worst_examples": worst}


def _read_resolved(checkpoint: Path) -> dict[str, Any]:
    text = (checkpoint / RESOLVED_FILE).read_text(encoding="utf-8")
    return dict(json.loads(text))
