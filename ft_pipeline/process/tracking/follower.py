"""Follows metrics.jsonl and sends its lines to one tracker. Started by `start.py`:

    python -m ft_pipeline.process.tracking.follower --tracker wandb|mlflow --metrics FILE \
        --config tracking.json

One line of the file, and what is sent of it (everything but the step, under that step):

    {"step": 12, "epoch": 0.15, "loss": 2.31, "learning_rate": 9.1e-4, "seconds": 61.4}

Standard input is a pipe from the training's side. It says `finished` and closes when training ends,
or only closes when it fails or is killed; this process then sends what is left and ends.
"""

import argparse
import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.records import load_record
from ft_pipeline.process.tracking.start import (
    END_SECONDS,
    FINISHED,
    FollowerConfig,
    hide_credentials,
    kill_tree,
)
from ft_pipeline.process.tracking.trackers import Row, Tracker, open_tracker

POLL_SECONDS = 0.5
RETRY_SECONDS = 3.0
ROWS_AT_ONCE = 100
INSTALL = "%s; nothing is sent. Install with pip install 'ft-pipeline[tracking]'"
logger = logging.getLogger("follower")


@dataclass
class TrainingEnd:
    """What the pipe has said of the training."""

    ended: threading.Event = field(default_factory=threading.Event)
    succeeded: bool = False


class MetricsFile:
    """Reads new whole lines. A value of a step comes once, however often it is written.

    The file may not exist yet, and a resumed training writes it again from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._last_line = b""
        self._seen: set[tuple[int, str]] = set()

    def read_rows(self) -> list[Row]:
        """Return the rows that were not returned before, without the values that were."""
        rows = []
        for line in self._read_lines():
            step, values = parse_line(line)
            new = {key: value for key, value in values.items() if (step, key) not in self._seen}
            self._seen |= {(step, key) for key in new}
            if new:
                rows.append((step, new))
        return rows

    def _read_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:  # written again from the start
                self._position, self._last_line = 0, b""
                file.seek(0)
            text = file.read()
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        self._position += sum(map(len, lines))
        self._last_line = lines[-1] if lines else self._last_line
        return lines


def parse_line(line: bytes) -> Row:
    """Return the step and the numbers of a line; no numbers where it is not a line of metrics."""
    try:
        record = json.loads(line)
        step = int(record.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("not a line of metrics, left out: %r", line[:200])
        return 0, {}
    numbers = {key: value for key, value in record.items() if type(value) in (int, float)}
    return step, numbers


def follow_file(file: MetricsFile, tracker: Tracker, training: TrainingEnd) -> None:
    """Send rows until the training has ended; what fails is tried again, at the end once."""
    rows: list[Row] = []
    connected, trouble, last = False, "", False
    while not last:
        last = training.ended.is_set()
        rows += file.read_rows()
        try:
            while rows or not connected:
                tracker.send(rows[:ROWS_AT_ONCE])
                connected, trouble = True, ""
                del rows[:ROWS_AT_ONCE]
        # A tracker raises what it likes; nothing of it may end this loop.
        except Exception as error:
            if str(error) != trouble:
                logger.warning("not sent: %s", hide_credentials(f"{type(error).__name__}: {error}"))
            trouble = str(error)
        training.ended.wait(RETRY_SECONDS if trouble else POLL_SECONDS)
    if rows or not connected:
        logger.warning("the training has ended; %d rows were not sent", len(rows))
        return
    tracker.finish(training.succeeded)


def watch_training() -> TrainingEnd:
    """Read the pipe in a thread, which ends this process where it stays too long after the end."""
    training = TrainingEnd()

    def wait() -> None:
        said = b""
        while part := os.read(0, 64):
            said += part
        training.succeeded = said == FINISHED
        training.ended.set()
        time.sleep(END_SECONDS + 1)  # the training's side kills first, where it still lives
        kill_tree(os.getpid())

    threading.Thread(target=wait, daemon=True).start()
    return training


def read_config(file: Path) -> FollowerConfig:
    """Read what the training's side wrote. Raises PipelineError where it cannot be used."""
    config = load_record(file, TypeAdapter(FollowerConfig))
    if config is None:
        raise PipelineError(f"{file}: not there.")
    return config


def main() -> None:
    """Follow a metrics file until the training has ended."""
    parser = argparse.ArgumentParser(description="Send metrics.jsonl to a tracker.")
    parser.add_argument("--tracker", choices=["wandb", "mlflow"], required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {options.tracker}: %(message)s")
    os.nice(10)  # the training goes first
    training = watch_training()
    try:
        config = read_config(options.config)
        tracker = open_tracker(options.tracker, config, options.config.parent)
        follow_file(MetricsFile(options.metrics), tracker, training)
    except ImportError as error:
        logger.warning(INSTALL, error)
    except PipelineError as error:
        sys.exit(f"{options.tracker}: {error} Nothing is sent.")
    # A traceback could show an address with a password.
    except Exception as error:
        sys.exit(hide_credentials(f"{options.tracker}: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
