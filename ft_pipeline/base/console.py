"""What people see during a run: log lines and activities.

In a terminal, an activity is one line, redrawn in place below all others:

      training ━━━━━━━━━━━━━━━╺━━━━━━━━━━━━ 20/36 steps, loss 2.310, 205 tokens/s, 40 s left

Elsewhere (a pipe, a log, Dagster's UI), it is a plain line at most every ten seconds.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ft_pipeline.base.activity import Activities, Activity, Shown

LONGEST_BAR = 28
SHORTEST_BAR = 6
PROJECT = logging.getLogger("ft_pipeline")
WORKER = "ft_pipeline.worker"
STYLES = {"warning: ": "yellow", "error: ": "red"}


class ConsoleHandler(logging.Handler):
    """Shows log records and activities on a stream; what the stream refuses is lost."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(logging.INFO)
        self._clock = clock
        self._activities = Activities(clock, patience=1.0)
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self._in_place = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._ended = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record. (Handler.handle holds the lock.)"""
        state = getattr(record, "activity", None)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal stops no training
            if isinstance(state, Activity):
                self._show(state)
            else:
                self._say(self.format(record), record.name.startswith(WORKER), record.levelno)

    def beat(self) -> None:
        """Write a progress line, if it is time for one."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            shown = None if self._in_place else self._activities.last()
            line = self._activities.next_line() if shown else None
            if shown and line:
                self._say(line, not shown.state.heading)

    def beat_every_second(self) -> None:
        """Tick in a separate thread until the handler ends."""

        def beat() -> None:
            while not self._ended.wait(1.0):
                self.beat()

        threading.Thread(target=beat, daemon=True).start()

    def end(self) -> None:
        """Remove an activity's line and end the thread.

        Not `close`: logging.config, which Dagster uses, closes handlers that are still in use.
        """
        self._ended.set()
        with contextlib.suppress(OSError, ValueError):
            self._stop_drawing()

    def _show(self, state: Activity) -> None:
        line = self._activities.update(state)
        drawn = self._in_place and not state.heading and not state.ended
        if line is not None and not drawn:
            self._say(line, not state.heading)
        if not self._in_place:
            self.beat()
        elif self._activities.going:
            self._start_drawing()
        else:
            self._stop_drawing()

    def _say(self, text: str, inner: bool, level: int = logging.INFO) -> None:
        """Write lines, the first with a dot unless it continues a line with one."""
        word = "error: " if level >= logging.ERROR else "warning: " if level > logging.INFO else ""
        shown = Text(style="dim" if inner and not word else "")
        shown.append(word, style=STYLES.get(word, "")).append(text)
        width = self._console.width - 2 if self._in_place else 100_000
        for number, line in enumerate(shown.wrap(self._console, width)):
            line.rstrip()
            start = "· " if number == 0 and not inner else "  "
            self._console.print(Text.assemble(start, line), soft_wrap=True)

    def _start_drawing(self) -> None:
        if self._live is None:
            self._live = Live(
                get_renderable=self._draw,
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def _stop_drawing(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> Text:
        """Return the line of the latest activity. Live calls this in its own thread."""
        shown = self._activities.last()
        if shown is None:
            return Text("")
        now, width = self._clock(), self._console.width - 3  # room for the ^C that is typed
        if shown.state.heading:  # the line above names it
            return Text(f"  {shown.describe_time(now)}", style="dim")
        return draw(shown, now, width)


def draw(shown: Shown, now: float, width: int) -> Text:
    """Return an activity as one line of at most `width`, with a bar if there is room."""
    state = shown.state
    behind = ", ".join(part for part in (state.describe(), shown.describe_time(now)) if part)
    line = Text(f"  {state.what} ", no_wrap=True, overflow="ellipsis", end="")
    room = min(width - len(line) - len(behind) - 2, LONGEST_BAR)
    if state.total and room >= SHORTEST_BAR:
        full = min(room, room * state.done // state.total)
        line.append("━" * full, style="green").append("━" * (room - full), style="dim").append(" ")
    return line.append(behind)


def show_project(stream: TextIO) -> ConsoleHandler:
    """Show all records of this project on one stream only; return the handler."""
    handler = ConsoleHandler(stream)
    PROJECT.addHandler(handler)
    PROJECT.setLevel(logging.INFO)
    PROJECT.propagate = False
    handler.beat_every_second()
    return handler


def ensure_shown() -> None:
    """Show the project's records on standard error, unless something already does."""
    if not PROJECT.hasHandlers():
        show_project(sys.stderr)
