"""Activities: what takes more than a moment, how far it is, and how much there is in total.

    with activity("training", total=36, unit="steps") as going:
        going.reach(1, "loss 2.310, 205 tokens/s")

Each change is a log record with the Activity in its attribute `activity`: console.py shows it, and
a worker's travels to the launcher like every other record.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic

from ft_pipeline.base.durations import format_seconds, format_whole_seconds

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Activity:
    """One state of an activity; `total` is None if it cannot be counted."""

    id: str  # the same in all its states
    what: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    figures: str = ""
    heading: bool = False  # of what is said until it ends
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.describe()}".rstrip()

    def describe(self) -> str:
        """Return the progress: `12/36 steps, loss 2.310`."""
        counted = "" if self.total is None else f"{self.done}/{self.total} {self.unit}".rstrip()
        return ", ".join(part for part in (counted, self.figures) if part)


class Going:
    """A running activity, as its owner sees it."""

    def __init__(self, state: Activity) -> None:
        self.state = state

    def reach(self, done: int, figures: str = "") -> None:
        """Report how much of the total is done; `figures` stay until replaced."""
        self.state = replace(self.state, done=done, figures=figures or self.state.figures)
        _report(self.state)

    def advance(self, count: int) -> None:
        """Report this much more as done."""
        self.reach(self.state.done + count)


@contextmanager
def activity(
    what: str, total: int | None = None, unit: str = "", done: int = 0, heading: bool = False
) -> Iterator[Going]:
    """Show `what` while the body runs."""
    number = f"{os.getpid()}.{next(_numbers)}"
    going = Going(Activity(number, what, done, total, unit, heading=heading))
    _report(going.state)
    try:
        yield going
    finally:
        _report(replace(going.state, ended=True))


def _report(state: Activity) -> None:
    logger.info("%s", state, extra={"activity": state})


@dataclass
class Shown:
    """A running activity; times are seconds of the clock."""

    state: Activity
    start: float
    done_at_start: int
    changed: float  # when `done` last did
    named: bool = False  # whether a line has said that it goes on

    def describe_time(self, now: float) -> str:
        """Return the time left, or the time so far if that is unknown."""
        done = self.state.done - self.done_at_start
        if self.state.total is None or done <= 0:
            return f"{format_whole_seconds(now - self.start)} so far"
        pace = (self.changed - self.start) / done
        left = pace * (self.state.total - self.state.done) - (now - self.changed)
        return f"{format_whole_seconds(max(left, 0.0))} left"


class Activities:
    """The running activities, and the lines that a log without a terminal gets for them.

    An activity that cannot be counted is named when it begins, or after `patience` seconds; a
    counted one when it is done and took long. In between, the latest activity gets a line at most
    every ten seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic, patience: float = 0.0) -> None:
        self._clock, self._patience = clock, patience
        self._last_line = clock()
        self.going: dict[str, Shown] = {}

    def last(self) -> Shown | None:
        """Return the latest activity."""
        return list(self.going.values())[-1] if self.going else None

    def update(self, state: Activity) -> str | None:
        """Take a new state; return its permanent line, if it has one."""
        now = self._clock()
        known = self.going.get(state.id)
        if known is None:
            self.going[state.id] = Shown(state, now, state.done, now)
            return self._name(self.going[state.id], 0.0 if state.heading else self._patience)
        if known.state.done != state.done:
            known.changed = now
        known.state = state
        if not state.ended:
            return None
        del self.going[state.id]
        took = now - known.start
        if state.done != state.total or took < SECONDS_BETWEEN_LINES:
            return None
        return self._line(f"{state}, in {format_seconds(took)}")

    def next_line(self) -> str | None:
        """Return a progress line, if it is time for one."""
        now, shown = self._clock(), self.last()
        if shown is None:
            return None
        if shown.state.total is None and not shown.named:
            return self._name(shown, self._patience)
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return None
        return self._line(f"{shown.state}, {shown.describe_time(now)}")

    def _name(self, shown: Shown, patience: float) -> str | None:
        if shown.named or shown.state.total is not None or self._clock() - shown.start < patience:
            return None
        shown.named = True
        return self._line(f"{shown.state}…")

    def _line(self, text: str) -> str:
        self._last_line = self._clock()
        return text
