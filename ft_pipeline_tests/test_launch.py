"""The life of a worker: reports, failures, and no process left behind, however its parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft_pipeline.launch import explain_end, run_in_group

# A worker that starts a grandchild, writes both ids, and works until it is ended.
WORKER = """
import os, signal, subprocess, sys, time
from pathlib import Path
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(f"{os.getpid()} {grandchild.pid}")
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2] == "quits":
    sys.exit(3)
time.sleep(600)
"""

# A parent that runs that worker through the launcher; SIGTERM raises, as it does under Dagster.
PARENT = """
import signal, sys
from pathlib import Path
from ft_pipeline import launch
def leave(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
launch.GRACE_SECONDS = 2.0
folder = Path(sys.argv[1])
command = [sys.executable, str(folder / "worker.py"), str(folder / "pids"), sys.argv[2]]
launch.run_in_group(command, {}, folder)
"""


def start_parent(folder: Path, kind: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    (folder / "parent.py").write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(folder / "parent.py"), str(folder), kind])
    pids = folder / "pids"
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    return parent, [int(pid) for pid in pids.read_text().split()]


def wait_until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("kind", ["obedient", "stubborn"])
def test_no_process_is_left_when_the_parent_ends(
    tmp_path: Path, sign: signal.Signals, kind: str
) -> None:
    parent, pids = start_parent(tmp_path, kind)
    assert all(alive(pid) for pid in pids)
    parent.send_signal(sign)
    parent.wait(timeout=30)
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds=30)


def test_grandchild_does_not_outlive_its_worker(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "pids"), "quits"]
    code, _ = run_in_group(command, {}, tmp_path)
    assert code == 3
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_no_reaper_is_left(tmp_path: Path) -> None:
    run_in_group([sys.executable, "-c", "pass"], {}, tmp_path)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not [command for command in commands if b"reaper.py" in command]


def test_output_goes_to_the_log_and_its_last_lines_come_back(tmp_path: Path) -> None:
    code = "print('a' * 10); print('bar 1\\rbar 2'); import sys; sys.exit(7)"
    status, lines = run_in_group([sys.executable, "-c", code], {}, tmp_path)
    assert status == 7
    assert lines == ["a" * 10, "bar 1", "bar 2"]
    assert (tmp_path / "worker.log").read_bytes() == b"a" * 10 + b"\nbar 1\rbar 2\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-9, "was killed (signal 9), probably because memory ran out"),
        (-15, "was ended by signal 15 (SIGTERM)"),
        (0, "ended with exit code 0 but without a report"),
        (1, "failed with exit code 1"),
    ],
)
def test_end_of_a_worker_is_explained(tmp_path: Path, code: int, expected: str) -> None:
    text = explain_end("train", code, ["line before", "last line"], tmp_path)
    assert expected in text
    assert "last line" in text
    assert f"python -m ft_pipeline.worker train --config {tmp_path}/config.json" in text
