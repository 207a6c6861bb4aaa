"""Being asked to leave: SIGTERM sets a flag, so that a training can write its checkpoint first."""

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("ft_pipeline.worker")

# The launcher waits for the seconds in this file of the run folder, if they are more than its own.
NEEDS_FILE = "leaving.json"


class Leaving(Exception):
    """The run was asked to end, and has written its checkpoint."""


class Leave:
    """Whether this process was asked to leave; a second signal ends it at once."""

    def __init__(self, run_folder: Path | None = None) -> None:
        self.asked = False
        self._folder = run_folder
        self._step_seconds = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over SIGTERM for the length of a `with` block."""
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def expect(self, step_seconds: float) -> None:
        """Remember how long a step takes; so long the checkpoint may take to come."""
        self._step_seconds = max(self._step_seconds, step_seconds)

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, _sign: int, _frame: object) -> None:
        if self.asked:
            raise SystemExit(128 + signal.SIGTERM)
        self.asked = True
        logger.info("asked to leave: writing a checkpoint after this step")
        if self._folder is not None:
            needed = {"seconds": round(2 * self._step_seconds + 20, 1)}
            (self._folder / NEEDS_FILE).write_text(json.dumps(needed), encoding="utf-8")
