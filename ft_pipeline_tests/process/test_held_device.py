"""Who holds the device: the launcher, its worker and the reaper, whichever of them is killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ft_pipeline.base.locks import is_held
from ft_pipeline.process.device_lock import Device, find_lock, hold_device
from ft_pipeline.process.launch import run_in_group
from ft_pipeline_tests.process.conftest import IMPORTS, Imports
from ft_pipeline_tests.process.test_launch import alive, find_processes, wait_until

# A parent whose worker, deaf to SIGTERM, has a grandchild that is deaf as well.
PARENT_WITH_DEVICE = f"""
import os, sys
from pathlib import Path
from ft_pipeline.process import launch
from ft_pipeline.process.device_lock import hold_device
launch.REAPER_GRACE_SECONDS = 600.0
folder = Path(sys.argv[1])
{IMPORTS}
with hold_device("train", print) as device:
    command = [sys.executable, str(folder / "deaf.py"), str(folder)]
    launch.run_in_group(command, {{}}, folder, device, imports)
"""
DEAF = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1], "pids").write_text(f"{os.getpid()} {grandchild.pid}")
time.sleep(600)
"""


@pytest.fixture
def deaf(
    tmp_path: Path, imports: Imports
) -> Iterator[tuple["subprocess.Popen[bytes]", int, int, Path]]:
    """A parent that holds the device, its worker and grandchild, and the lock."""
    (tmp_path / "deaf.py").write_text(DEAF, encoding="utf-8")
    command = [sys.executable, "-c", PARENT_WITH_DEVICE, str(tmp_path)]
    parent = subprocess.Popen(command, env={**os.environ, "FT_LOCKS": str(tmp_path)})
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    wait_until(lambda: find_reapers(tmp_path))
    worker, grandchild = map(int, pids.read_text().split())
    yield parent, worker, grandchild, next(tmp_path.glob("ft_pipeline-*/cpu.lock"))
    for process in (parent.pid, worker, grandchild, *find_processes(tmp_path)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    parent.wait()


def test_device_stays_taken_until_the_group_of_a_killed_parent_has_ended(
    deaf: tuple["subprocess.Popen[bytes]", int, int, Path],
) -> None:
    parent, worker, grandchild, lock = deaf
    parent.kill()
    parent.wait(timeout=30)
    assert is_held(lock)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not alive(worker))
    assert alive(grandchild)
    assert is_held(lock)  # by the reaper, which waits for the grandchild's end
    os.kill(grandchild, signal.SIGKILL)
    wait_until(lambda: not is_held(lock))


def test_worker_keeps_the_device_when_all_around_it_are_killed(
    deaf: tuple["subprocess.Popen[bytes]", int, int, Path], tmp_path: Path
) -> None:
    parent, worker, _, lock = deaf
    (reaper,) = find_reapers(tmp_path)
    for process in (reaper, parent.pid):
        os.kill(process, signal.SIGKILL)
    parent.wait(timeout=30)
    wait_until(lambda: not alive(reaper))
    assert alive(worker)
    assert is_held(lock)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_held(lock))


def find_reapers(folder: Path) -> list[int]:
    """Return the ids of the reapers of a run folder."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in find_processes(folder)}
    return [pid for pid, command in commands.items() if b"reaper.py" in command]


def test_device_is_free_when_its_worker_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: Imports
) -> None:
    """Also where the launcher has started something else that goes on, such as a tracker."""
    monkeypatch.setenv("FT_LOCKS", str(tmp_path))
    with hold_device("train", print) as device:
        beside = subprocess.Popen(["sleep", "600"])
        run_in_group([sys.executable, "-c", "pass"], {}, tmp_path, device, imports)
        assert is_held(find_lock("cpu"))
    try:
        assert not is_held(find_lock("cpu"))
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()


def test_worker_sees_the_card_that_is_held_for_it(tmp_path: Path, imports: Imports) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    device = Device("GPU-aaaa", {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, read_end)
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    _, lines = run_in_group([sys.executable, "-c", code], {}, tmp_path, device, imports)
    assert lines == ["GPU-aaaa"]
    os.close(read_end)
