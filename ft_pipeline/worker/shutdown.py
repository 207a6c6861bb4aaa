"""Graceful shutdown: SIGTERM sets a flag, so that a training writes its checkpoint first.

Launcher and reaper wait for the seconds in `shutdown.json` in the run folder, if that is longer
than their own limit.
"""

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ft_pipeline.base.records import write_atomically
from ft_pipeline.process.reaper import NEEDS_FILE

logger = logging.getLogger("ft_pipeline.worker")


class GracefulShutdown(Exception):
    """The run was asked to shut down, and has written its checkpoint."""


class ShutdownRequest:
    """Whether this process was asked to shut down.

    Further signals change nothing: launcher, reaper and the parent watch may all send one, and the
    sender follows up with SIGKILL after the announced time.
    """

    def __init__(self, run_folder: Path | None = None) -> None:
        self.asked = False
        self._folder = run_folder
        self._seconds = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM within a `with` block."""
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def expect(self, seconds: float) -> None:
        """Remember how long a step or evaluation takes, which may delay the checkpoint."""
        if seconds > self._seconds:
            self._seconds = seconds
            if self.asked:
                self._announce()

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, _sign: int, _frame: object) -> None:
        if self.asked:
            return
        self.asked = True
        logger.info("asked to shut down: writing a checkpoint after this step")
        self._announce()

    def _announce(self) -> None:
        if self._folder is not None:
            needed = {"seconds": round(2 * self._seconds + 20, 1)}
            # Nobody waits for it any more behind a power cut.
            write_atomically(self._folder / NEEDS_FILE, json.dumps(needed), durable=False)
