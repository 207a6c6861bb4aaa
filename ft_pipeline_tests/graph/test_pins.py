"""A run keeps what it looked up outside of the store."""

from pathlib import Path

import pytest

from ft_pipeline.graph.pins import Pins


def test_a_run_looks_up_once_and_another_run_looks_again(tmp_path: Path) -> None:
    revisions = iter(["1", "2", "3"])

    def look_up() -> dict[str, str]:
        return {"revision": next(revisions)}

    assert Pins(tmp_path / "a").keep("raw", look_up) == {"revision": "1"}
    assert Pins(tmp_path / "a").keep("raw", look_up) == {"revision": "1"}
    assert Pins(tmp_path / "b").keep("raw", look_up) == {"revision": "2"}


def test_what_could_not_be_looked_up_is_looked_up_again(tmp_path: Path) -> None:
    pins = Pins(tmp_path)

    def fail() -> dict[str, str]:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        pins.keep("raw", fail)
    assert pins.keep("raw", lambda: {"revision": "1"}) == {"revision": "1"}


def test_a_run_that_continues_another_has_its_revisions(tmp_path: Path) -> None:
    for asset in ("raw_trivia", "raw_cot"):
        Pins(tmp_path / "first").keep(asset, lambda: {"revision": "1"})
    second = Pins(tmp_path / "second")
    second.take_over(tmp_path / "first", done={"raw_trivia"})
    assert second.keep("raw_trivia", lambda: {"revision": "2"}) == {"revision": "1"}
    # Its file changed while it was copied: the old revision can never be made again.
    assert second.keep("raw_cot", lambda: {"revision": "2"}) == {"revision": "2"}
