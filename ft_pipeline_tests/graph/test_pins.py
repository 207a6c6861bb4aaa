"""A run keeps what it looked up outside of the store."""

import subprocess
import sys
from pathlib import Path

import pytest

from ft_pipeline.graph.pins import REVISIONS_FILE, Pins
from ft_pipeline_tests.base.damages import list_damages, read_names


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


FOUND = {
    "raw_trivia": {"revision": "sha256:5d0c"},
    "prompt_completions": {"forgotten": "91ab", "held_out": {"größe.csv": "77e1"}},
    "train_set": {},
}


def keep(folder: Path, asset: str) -> dict[str, object]:
    return Pins(folder).keep(asset, lambda: dict(FOUND[asset]))


def test_damaged_pins_are_named_and_what_they_held_is_looked_up_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a" / REVISIONS_FILE
    for asset in FOUND:
        keep(tmp_path / "a", asset)
    whole = file.read_bytes()
    of_other_shape = whole.replace(b'"sha256:5d0c"', b"7")
    for content in (*list_damages(whole), of_other_shape):
        file.write_bytes(content)
        for asset, found in FOUND.items():
            assert keep(tmp_path / "a", asset) == found
        (named,) = read_names(caplog, file)
        assert named.endswith("; the run looks up the revisions again.")
        assert file.read_bytes() == whole


def test_of_a_run_whose_pins_are_damaged_nothing_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path / "first", "raw_trivia")
    file = tmp_path / "first" / REVISIONS_FILE
    file.write_bytes(file.read_bytes()[:-4])
    second = Pins(tmp_path / "second")
    second.take_over(tmp_path / "first", done={"raw_trivia"})
    assert len(read_names(caplog, file)) == 1
    assert second.keep("raw_trivia", lambda: {"revision": "2"}) == {"revision": "2"}


KEEP = """
import sys
from pathlib import Path
from ft_pipeline.graph.pins import Pins
for number in range(100):
    name = f"raw_{number}"
    print(Pins(Path(sys.argv[1])).keep(name, lambda: {"revision": sys.argv[2]})["revision"])
"""


def test_the_processes_of_a_run_build_of_the_same_revisions(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", KEEP, str(tmp_path), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert said[0] == said[1]
    assert len(said[0]) == 100
