"""Progress and metrics of a training run."""

import json
import logging
import os
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from ft_pipeline.errors import PipelineError

logger = logging.getLogger(__name__)


class MetricsCallback(TrainerCallback):
    """Writes metrics.jsonl and reports step, loss, tokens per second and time left.

    In a terminal it draws a tqdm bar; elsewhere it logs a line every ten seconds.
    """

    def __init__(self, metrics_file: Path) -> None:
        self.metrics: list[dict[str, Any]] = []
        self._file = metrics_file
        self._start = monotonic()
        self._last_line = 0.0
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.max_steps < 2 * args.logging_steps:
            raise PipelineError(
                f"training has {state.max_steps} steps and logs every {args.logging_steps}: too "
                "few logged losses to see whether it learns. Lower training.logging_steps, or "
                "train for more steps (training.epochs, training.max_steps)."
            )
        self._start = monotonic()
        self._file.write_text("", encoding="utf-8")
        logger.info("training: %d steps", state.max_steps)
        if os.environ.get("FT_PROGRESS") == "bar":
            self._bar = tqdm(total=state.max_steps, unit="step", file=sys.stderr, leave=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        seconds = monotonic() - self._start
        record = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 4),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs.get("learning_rate", 0.0)),
            "grad_norm": float(logs.get("grad_norm", 0.0)),
            "tokens": round(float(logs["num_tokens"])),
            "seconds": round(seconds, 2),
        }
        self.metrics.append(record)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._show(record, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, record: dict[str, Any], max_steps: int) -> None:
        seconds, step = record["seconds"], record["step"]
        speed = record["tokens"] / max(seconds, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {record['loss']:.3f}, {speed:.0f} tokens/s")
            self._bar.update(step - self._bar.n)
        elif seconds - self._last_line >= 10 or step == max_steps:
            self._last_line = seconds
            left = seconds / step * (max_steps - step)
            logger.info(
                "step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
                step,
                max_steps,
                record["loss"],
                speed,
                left,
            )
