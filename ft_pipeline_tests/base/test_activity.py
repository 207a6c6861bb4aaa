"""Activities: which lines a log has of them, by a clock that the test moves."""

import logging

import pytest

from ft_pipeline.base.activity import Activities, Activity, activity
from ft_pipeline.base.durations import format_seconds, format_whole_seconds


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_step_a_second_gives_a_line_every_ten_seconds(clock: Clock) -> None:
    activities, lines = Activities(clock), []
    assert activities.update(Activity("1", "training", 0, 35, "steps")) is None
    for step in range(1, 36):
        clock.now += 1
        state = Activity("1", "training", step, 35, "steps", f"loss {step / 10:.1f}")
        assert activities.update(state) is None
        lines.append(activities.next_line())
    # A step takes a second: behind the tenth there are 25 left.
    assert [line for line in lines if line] == [
        "training 10/35 steps, loss 1.0, 25 s left",
        "training 20/35 steps, loss 2.0, 15 s left",
        "training 30/35 steps, loss 3.0, 5 s left",
    ]
    ended = Activity("1", "training", 35, 35, "steps", "loss 3.5", ended=True)
    assert activities.update(ended) == "training 35/35 steps, loss 3.5, in 35 s"
    assert activities.last() is None


def test_what_cannot_be_counted_is_named_at_once_and_then_every_ten_seconds(clock: Clock) -> None:
    activities = Activities(clock)
    assert activities.update(Activity("1", "loading the model")) == "loading the model…"
    lines = []
    for _ in range(25):
        clock.now += 1
        lines.append(activities.next_line())
    assert [line for line in lines if line] == [
        "loading the model, 10 s so far",
        "loading the model, 20 s so far",
    ]
    assert activities.update(Activity("1", "loading the model", ended=True)) is None


def test_what_is_over_in_a_moment_is_not_named_where_nobody_waits_for_it(clock: Clock) -> None:
    activities = Activities(clock, patience=1.0)
    clock.now += 60  # since the last line
    assert activities.update(Activity("1", "saving the model")) is None
    assert activities.next_line() is None
    clock.now += 1
    assert activities.next_line() == "saving the model…"
    assert activities.next_line() is None
    assert activities.update(Activity("2", "model: building", heading=True)) is not None


def test_a_resumed_training_is_timed_by_its_own_steps(clock: Clock) -> None:
    activities = Activities(clock)
    activities.update(Activity("1", "training", 80, 100, "steps"))
    clock.now += 10
    activities.update(Activity("1", "training", 85, 100, "steps"))
    assert activities.next_line() == "training 85/100 steps, 30 s left"  # 2 s a step, 15 left


def test_short_work_and_work_that_failed_leave_no_line(clock: Clock) -> None:
    activities = Activities(clock)
    activities.update(Activity("1", "scoring", 0, 5, "examples"))
    clock.now += 9
    assert activities.update(Activity("1", "scoring", 5, 5, "examples", ended=True)) is None
    activities.update(Activity("2", "scoring", 0, 5, "examples"))
    clock.now += 60
    assert activities.update(Activity("2", "scoring", 3, 5, "examples", ended=True)) is None


def test_the_line_is_on_what_began_last(clock: Clock) -> None:
    activities = Activities(clock)
    activities.update(Activity("1", "model: building"))
    activities.update(Activity("2", "training", 1, 9, "steps"))
    clock.now += 10
    assert activities.next_line() == "training 1/9 steps, 10 s so far"
    activities.update(Activity("2", "training", 1, 9, "steps", ended=True))
    assert activities.next_line() is None  # the last line was just now
    clock.now += 10
    assert activities.next_line() == "model: building, 20 s so far"


def test_the_states_of_an_activity_are_log_records(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), activity("training", 2, "steps") as going:
        going.reach(1, "loss 2.0")
        going.advance(1)
    states = [record.activity for record in caplog.records]
    assert [(s.done, s.figures, s.ended) for s in states] == [
        (0, "", False),
        (1, "loss 2.0", False),
        (2, "loss 2.0", False),
        (2, "loss 2.0", True),
    ]
    assert len({state.id for state in states}) == 1


@pytest.mark.parametrize(
    ("seconds", "exact", "whole"),
    [
        (0.04, "0.0 s", "0 s"),
        (9.94, "9.9 s", "10 s"),
        (9.96, "10 s", "10 s"),
        (59.4, "59 s", "59 s"),
        (59.6, "1 min 0 s", "1 min 0 s"),
        (3_599.6, "1 h 0 min", "1 h 0 min"),
        (4_000, "1 h 6 min", "1 h 6 min"),
    ],
)
def test_seconds_are_written_as_people_read_them(seconds: float, exact: str, whole: str) -> None:
    assert (format_seconds(seconds), format_whole_seconds(seconds)) == (exact, whole)
