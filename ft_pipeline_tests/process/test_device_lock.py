"""One training at a time on a device: a live owner is waited for or named; a dead one is not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ft_pipeline_tests.nvidia_smi import FIRST, SECOND, TWO_CARDS, install

# Takes the device, says so, and keeps it until its standard input is closed.
HOLD = """
import sys
from ft_pipeline.process.device_lock import hold_device
from ft_pipeline.base.errors import PipelineError
try:
    with hold_device(sys.argv[1], lambda text: print(text, flush=True)) as device:
        print("held", device.name, device.environment.get("CUDA_VISIBLE_DEVICES"), flush=True)
        sys.stdin.read()
except PipelineError as error:
    sys.exit(str(error))
"""
Holder = subprocess.Popen[str]


@pytest.fixture
def holders() -> Iterator["list[Holder]"]:
    """The processes of a test; those that are left are killed behind it."""
    started: list[Holder] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def hold(holders: "list[Holder]", folder: Path, task: str = "train", **more: str) -> Holder:
    pipe = subprocess.PIPE
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, task],
        env={**os.environ, "FT_LOCKS": str(folder), **more},
        **{"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True},
    )
    holders.append(holder)
    return holder


def read_line(holder: Holder) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def describe(device: str, owner: Holder, task: str = "train") -> str:
    return f"the {device} is in use by process {owner.pid} ({task} in {Path.cwd()})"


def test_a_live_owner_is_named_where_nobody_wants_to_wait(
    holders: "list[Holder]", tmp_path: Path
) -> None:
    owner = hold(holders, tmp_path)
    assert read_line(owner) == "held cpu None"
    refused = hold(holders, tmp_path, "evaluate", FT_NO_WAIT="1")
    output, error = refused.communicate(timeout=30)
    assert (refused.returncode, output) == (1, "")
    assert f"{describe('cpu', owner)}, and FT_NO_WAIT (--no-wait) is set" in error


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_the_next_one_names_the_owner_and_waits_for_its_end(
    holders: "list[Holder]", tmp_path: Path, ends: str
) -> None:
    owner = hold(holders, tmp_path)
    assert read_line(owner) == "held cpu None"
    waiting = hold(holders, tmp_path)
    assert read_line(waiting) == f"waiting: {describe('cpu', owner)}"
    assert waiting.poll() is None
    owner.kill() if ends == "killed" else owner.communicate()
    assert read_line(waiting) == "held cpu None"


def test_who_waits_is_told_of_the_next_owner_too(holders: "list[Holder]", tmp_path: Path) -> None:
    first = hold(holders, tmp_path)
    assert read_line(first) == "held cpu None"
    waiting = {task: hold(holders, tmp_path, task) for task in ("evaluate", "prune")}
    assert {read_line(one) for one in waiting.values()} == {f"waiting: {describe('cpu', first)}"}
    first.kill()
    said = {read_line(one): task for task, one in waiting.items()}
    second = said["held cpu None"]  # whichever of the two
    assert f"waiting: {describe('cpu', waiting[second], second)}" in said


def test_two_cards_do_not_block_each_other(
    holders: "list[Holder]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cards are nvidia_smi.py's; that CUDA then uses the one that is named is not proven."""
    install(tmp_path, monkeypatch, TWO_CARDS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    one = hold(holders, tmp_path)
    assert read_line(one) == f"held {FIRST} {FIRST}"
    other = hold(holders, tmp_path, "evaluate")
    assert read_line(other) == f"held {SECOND} {SECOND}"
    waiting = hold(holders, tmp_path)
    both = f"{describe(FIRST, one)} and {describe(SECOND, other, 'evaluate')}"
    assert read_line(waiting) == f"waiting: {both}"
    elsewhere = hold(holders, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert read_line(elsewhere) == "held cpu None"
    other.kill()
    assert read_line(waiting) == f"held {SECOND} {SECOND}"


def test_the_same_card_is_one_by_whatever_name_it_was_chosen(
    holders: "list[Holder]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, TWO_CARDS)
    owner = hold(holders, tmp_path, CUDA_VISIBLE_DEVICES="1")
    assert read_line(owner) == f"held {SECOND} {SECOND}"
    waiting = hold(holders, tmp_path, CUDA_VISIBLE_DEVICES=SECOND)
    assert read_line(waiting) == f"waiting: {describe(SECOND, owner)}"


def test_a_folder_of_locks_that_cannot_be_is_an_error_that_names_it(
    holders: "list[Holder]", tmp_path: Path
) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file", encoding="utf-8")
    _, error = hold(holders, occupied).communicate(timeout=30)
    assert f"{occupied}/ft_pipeline-{os.getuid()}: cannot be created (Not a directory)" in error
    assert "FT_LOCKS" in error


def test_a_link_in_the_place_of_the_folder_of_locks_is_refused(
    holders: "list[Holder]", tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"ft_pipeline-{os.getuid()}").symlink_to(elsewhere)
    _, error = hold(holders, tmp_path).communicate(timeout=30)
    assert "not a folder owned by this user" in error
    assert list(elsewhere.iterdir()) == []
