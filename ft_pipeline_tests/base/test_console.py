"""The console: plain lines in a pipe, one line drawn in its place in a terminal."""

import io
import logging

import pytest

from ft_pipeline.base.activity import Activity, Shown
from ft_pipeline.base.console import ConsoleHandler, draw


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(
    text: str = "", name: str = "ft_pipeline.store", level: int = 20, **extra: object
) -> logging.LogRecord:
    return logging.makeLogRecord({"name": name, "msg": text, "levelno": level, **extra})


def show(handler: ConsoleHandler, state: Activity) -> None:
    handler.handle(record(str(state), activity=state))


def test_a_pipe_gets_plain_lines() -> None:
    stream, now = io.StringIO(), [0.0]
    handler = ConsoleHandler(stream, lambda: now[0])
    show(handler, Activity("1", "model: building", heading=True))
    handler.handle(record("back end: [red]plain[/red]", "ft_pipeline.worker.train"))
    show(handler, Activity("2", "training", 0, 20, "steps"))
    for step in range(1, 21):
        now[0] += 1
        show(handler, Activity("2", "training", step, 20, "steps"))
    now[0] += 10
    handler.beat()
    handler.beat()
    handler.handle(record("torn\nin two", level=logging.WARNING))
    assert stream.getvalue().splitlines() == [
        "· model: building…",
        "  back end: [red]plain[/red]",
        "  training 10/20 steps, 10 s left",
        "  training 20/20 steps, 0 s left",
        "  training 20/20 steps, 0 s left",
        "· warning: torn",
        "  in two",
    ]


def test_a_terminal_gets_a_bar_that_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    handler = ConsoleHandler(stream)
    show(handler, Activity("1", "training", 5, 10, "steps"))
    assert "\x1b[?25l" in stream.getvalue()  # the cursor is hidden
    handler.handle(record("a line in between", "ft_pipeline.worker"))
    show(handler, Activity("1", "training", 10, 10, "steps", ended=True))
    written = stream.getvalue()
    assert "━" in written and "5/10 steps" in written
    assert "  \x1b[2ma line in between\x1b[0m\n" in written
    assert written.rstrip().endswith("\x1b[2K")  # the line is erased
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, now = Terminal(), [0.0]
    handler = ConsoleHandler(stream, lambda: now[0])
    show(handler, Activity("1", "loading the model"))
    now[0] += 1
    handler.beat()
    assert stream.getvalue() == "  loading the model…\n"


def test_a_closed_stream_loses_lines_and_stops_nothing() -> None:
    stream = io.StringIO()
    handler = ConsoleHandler(stream)
    stream.close()
    handler.handle(record("lost"))
    show(handler, Activity("1", "loading the model"))
    handler.beat()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_bar_fits_into_its_terminal(width: int) -> None:
    state = Activity("1", "training", 18, 36, "steps", "loss 2.310, 205 tokens/s")
    line = draw(Shown(state, start=0, done_at_start=0, changed=90), now=90, width=width)
    assert line.no_wrap and line.overflow == "ellipsis"
    bar = line.plain.count("━")
    if width >= 80:  # 18 of 36 steps in 90 s: 90 s are left; half of the bar's 19 or 28 is full
        assert line.plain.endswith("━ 18/36 steps, loss 2.310, 205 tokens/s, 1 min 30 s left")
        assert line.spans[0].end - line.spans[0].start == bar // 2
        assert len(line) < width
    if width <= 60:
        assert bar == 0
