"""One training at a time: a live owner is waited for, or named in a refusal; a dead one is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOLD = """
import sys, time
from ft_pipeline.process.device_lock import hold_device
from ft_pipeline.base.errors import PipelineError
try:
    hold_device("cpu", sys.argv[1])
except PipelineError as error:
    sys.exit(str(error))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(folder: Path, task: str, seconds: float, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, task, str(seconds)],
        env={**os.environ, "FT_LOCKS": str(folder), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_held(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def test_a_live_owner_is_named_where_nobody_wants_to_wait(tmp_path: Path) -> None:
    owner = hold(tmp_path, "train", 60)
    wait_until_held(owner)
    try:
        refused = hold(tmp_path, "evaluate", 0, FT_NO_WAIT="1")
        _, error = refused.communicate(timeout=30)
        assert refused.returncode == 1
        assert f"in use by process {owner.pid} (train in {Path.cwd()})" in error
        assert "--no-wait" in error
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_the_next_one_waits_for_its_end(tmp_path: Path, ends: str) -> None:
    owner = hold(tmp_path, "train", 2.0 if ends == "by itself" else 60)
    wait_until_held(owner)
    waiting = hold(tmp_path, "train", 0)
    time.sleep(0.5)
    assert waiting.poll() is None
    if ends == "killed":
        owner.kill()
    wait_until_held(waiting)
    assert owner.wait(timeout=10) is not None
    assert waiting.wait(timeout=10) == 0
