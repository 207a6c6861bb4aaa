"""The progress of a training: its losses, and how they are shown.

One line of metrics.jsonl:

    {"step": 12, "epoch": 0.15, "loss": 2.31, "learning_rate": 9.1e-4, "grad_norm": 1.2,
     "tokens": 10752, "seconds": 61.4}

`loss` is in nats per trained token, over the steps since the previous line; `tokens` counts real
(not padding) tokens so far. Lines of an evaluation have `step` and `eval_loss`. All of this is part
of a checkpoint, so a resumed run writes the same lines as an uninterrupted one (except `seconds`).
"""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft_pipeline.base.activity import Going, activity

logger = logging.getLogger(__name__)

# A spike is looked for against the mean of so many steps.
RECENT = 20


@dataclass
class Progress:
    """The state of a training besides weights and optimizer; `losses`: nats per token by step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    window_loss: float = 0.0  # nats, summed over the trained tokens since the last line
    window_trained: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    without_best: int = 0

    def add_step(self, loss: float, trained: int, tokens: int) -> None:
        """Count an optimizer step with these numbers of trained and real tokens."""
        self.step += 1
        self.tokens += tokens
        self.losses.append(loss)
        self.window_loss += loss * trained
        self.window_trained += trained

    def find_fault(self, spike_factor: float | None) -> str | None:
        """Say what is wrong with the last step's loss, if anything."""
        *before, loss = self.losses
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        recent = before[-RECENT:]
        if spike_factor is not None and len(recent) == RECENT:
            mean = sum(recent) / RECENT
            if loss > spike_factor * mean:
                return (
                    f"the loss {loss:.3f} is more than {spike_factor:g} times {mean:.3f}, the "
                    f"mean of the previous {RECENT} steps (training.spike_factor)"
                )
        return None

    def close_window(self, epoch: float, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """Return the record of the steps since the last one."""
        record = {
            "step": self.step,
            "epoch": round(epoch, 4),
            "loss": self.window_loss / max(self.window_trained, 1),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
        }
        self.window_loss, self.window_trained = 0.0, 0
        self.records.append(record)
        return record

    def add_evaluation(self, loss: float) -> dict[str, Any]:
        """Return the record of an evaluation, and track the best."""
        if self.best_loss is None or loss < self.best_loss:
            self.best_step, self.best_loss, self.without_best = self.step, loss, 0
        else:
            self.without_best += 1
        record = {"step": self.step, "eval_loss": loss, "tokens": self.tokens}
        self.records.append(record)
        return record

    def write(self, file: Path) -> None:
        """Write the progress as JSON."""
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def read(file: Path) -> "Progress":
        """Read what `write` wrote."""
        return Progress(**json.loads(file.read_text(encoding="utf-8")))


class Display:
    """Writes metrics.jsonl and shows the training's progress."""

    def __init__(self, metrics_file: Path, steps: int) -> None:
        self._file, self._steps = metrics_file, steps
        self._going: Going | None = None

    @contextmanager
    def showing(self, progress: Progress) -> Iterator[None]:
        """Write the lines so far, and show the training while the body runs."""
        self._file.write_text("", encoding="utf-8")
        for record in progress.records:
            self._append(record)
        with activity("training", self._steps, "steps", progress.step) as self._going:
            yield

    def show(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; show its validation figures."""
        self._append(record)
        if "eval_loss" in record:
            logger.info("step %d: loss on val_tokens %.4f", record["step"], record["eval_loss"])

    def advance(self, progress: Progress) -> None:
        """Show the last step."""
        assert self._going is not None, "a step is only shown while its training is"
        speed = progress.tokens / max(progress.seconds, 1e-9)
        self._going.reach(progress.step, f"loss {progress.losses[-1]:.3f}, {speed:.0f} tokens/s")

    def _append(self, record: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
