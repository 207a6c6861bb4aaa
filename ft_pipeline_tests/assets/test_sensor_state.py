"""What a sensor decides from look to look, without Dagster."""

from typing import Any

import pytest

from ft_pipeline.assets.sensor_state import (
    Reader,
    SourceWatch,
    decide,
    name_request,
    note_failure,
    parse_watch,
)
from ft_pipeline.config.recipe import Automation


def reader(recipe: str = "quiz", last_run: float | None = None, **settings: Any) -> Reader:
    return Reader(recipe, Automation(**({"on_new_data": True} | settings)), lambda: last_run)


def test_what_is_there_at_the_first_look_is_not_new() -> None:
    found = decide(SourceWatch(), "1", [reader()], now=0)
    assert found.requests == ()
    assert found.watch.revision == "1"


def test_a_change_is_requested_once_for_each_recipe() -> None:
    readers = [reader("quiz"), reader("other")]
    first = decide(SourceWatch(revision="1"), "2", readers, now=0)
    assert first.requests == ("quiz", "other")
    for _ in range(3):
        again = decide(first.watch, "2", readers, now=1)
        assert again.requests == ()
        assert again.reason == "nothing new"


def test_a_revision_that_comes_back_is_requested_under_another_key() -> None:
    keys = []
    watch = SourceWatch(revision="1")
    for revision in ("2", "1", "2"):
        found = decide(watch, revision, [reader()], now=0)
        watch = found.watch
        keys += [name_request(watch, "trivia", recipe) for recipe in found.requests]
    assert len(set(keys)) == 3


def test_a_look_repeated_after_a_crash_has_the_same_key() -> None:
    """The cursor is stored after the request: a daemon killed between the two asks again."""
    before = SourceWatch(revision="1", changes=4)
    keys = {
        name_request(decide(before, "2", [reader()], now=n).watch, "trivia", "quiz")
        for n in (0, 60)
    }
    assert keys == {"quiz trivia 2 #5"}


def test_what_comes_sooner_than_min_interval_waits_and_is_built_together() -> None:
    early = reader(last_run=100.0, min_interval="10m")
    watch = SourceWatch(revision="1")
    for revision, now in (("2", 200), ("3", 300)):
        found = decide(watch, revision, [early], now=now)
        assert found.requests == ()
        watch = found.watch
    # 100 + 600 seconds
    assert "waits another 1 s" in decide(watch, "3", [early], now=699).reason
    late = decide(watch, "3", [early], now=700)
    assert late.requests == ("quiz",)
    assert late.watch.waiting == ()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"paused": True}, "quiz is paused"), ({"on_new_data": False}, "does not run on new data")],
)
def test_a_recipe_that_is_off_is_not_started_and_the_reason_says_so(
    settings: dict[str, bool], reason: str
) -> None:
    found = decide(SourceWatch(revision="1"), "2", [reader(**settings)], now=0)
    assert found.requests == ()
    assert reason in found.reason
    # A recipe that is paused is told when it goes on; one that does not look at data never.
    later = decide(found.watch, "2", [reader()], now=60)
    assert later.requests == (("quiz",) if "paused" in settings else ())


def test_a_failed_look_keeps_the_last_known_revision() -> None:
    failed = note_failure(SourceWatch(revision="1", changes=2), "no answer")
    assert (failed.revision, failed.changes, failed.failure) == ("1", 2, "no answer")


def test_the_cursor_comes_back_as_it_was() -> None:
    watch = SourceWatch(revision="2", changes=1, waiting=("quiz",), asked=5.0, failure="no answer")
    assert parse_watch(watch.model_dump_json()) == watch
    assert parse_watch(None) == parse_watch("") == parse_watch("not JSON") == SourceWatch()
