"""The life of a worker: reports, failures, and no process left behind, however its parent ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ft_pipeline.process.launch import explain_end, run_in_group
from ft_pipeline.process.reaper import NEEDS_FILE, read_grace, read_needs
from ft_pipeline_tests.base.damages import list_damages
from ft_pipeline_tests.process.conftest import IMPORTS, Imports

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
PARENT = f"""
import os, signal, sys
from pathlib import Path
from ft_pipeline.process import launch
def leave(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
launch.GRACE_SECONDS = 2.0
folder = Path(sys.argv[1])
{IMPORTS}
command = [sys.executable, str(folder / "worker.py"), str(folder / "pids"), sys.argv[2]]
launch.run_in_group(command, {{}}, folder, None, imports)
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


@pytest.mark.usefixtures("imports")
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


# A parent of a real worker; `killed` is killed after it has started it, before its reaper.
PARENT_OF_REAL_WORKER = f"""
import os, signal, sys
from pathlib import Path
from ft_pipeline.process import launch
def leave(*_):
    raise SystemExit(143)
signal.signal(signal.SIGTERM, leave)
if sys.argv[2] == "killed":
    launch._reaper_of = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
{IMPORTS}
command = launch.worker_command("train", folder / "config.json")
launch.run_in_group(command, {{}}, folder, None, imports)
"""


def start_parent_of_real_worker(folder: Path, kind: str) -> "subprocess.Popen[bytes]":
    os.mkfifo(folder / "config.json")  # the worker reads it until somebody has written to it
    return subprocess.Popen([sys.executable, "-c", PARENT_OF_REAL_WORKER, str(folder), kind])


@pytest.mark.usefixtures("imports")
def test_worker_whose_parent_was_killed_before_it_began_leaves(tmp_path: Path) -> None:
    parent = start_parent_of_real_worker(tmp_path, "killed")
    assert parent.wait(timeout=30) == -signal.SIGKILL
    wait_until(lambda: not find_processes(tmp_path), seconds=30)


@pytest.mark.usefixtures("imports")
def test_worker_stays_while_its_parent_lives(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    parent = start_parent_of_real_worker(tmp_path, "waits")
    with contextlib.ExitStack() as stack:
        wait_until(lambda: is_read(config, stack), seconds=30)  # so it has looked for its parent
        time.sleep(1.5)
        assert find_readers(config)
        parent.send_signal(signal.SIGTERM)
        parent.wait(timeout=30)
    wait_until(lambda: not find_processes(tmp_path))


def is_read(fifo: Path, stack: contextlib.ExitStack) -> bool:
    """Whether a process reads a pipe; its other end is then open until `stack` is closed."""
    try:
        stack.callback(os.close, os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


# A worker that needs longer for its checkpoint than the reaper waits by itself, and says so.
SAVING = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def save(*_):
    (folder / "shutdown.json").write_text('{"seconds": 20}')
    time.sleep(3)
    (folder / "checkpoint").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(folder / "pids").write_text("ready")
time.sleep(600)
"""

PARENT_OF_SAVING = f"""
import os, sys
from pathlib import Path
from ft_pipeline.process import launch
launch.REAPER_GRACE_SECONDS = 0.5
folder = Path(sys.argv[1])
{IMPORTS}
command = [sys.executable, str(folder / "saving.py"), str(folder)]
launch.run_in_group(command, {{}}, folder, None, imports)
"""


@pytest.mark.usefixtures("imports")
def test_reaper_waits_for_the_checkpoint_of_a_worker_whose_parent_was_killed(
    tmp_path: Path,
) -> None:
    (tmp_path / "saving.py").write_text(SAVING, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, "-c", PARENT_OF_SAVING, str(tmp_path)])
    wait_until((tmp_path / "pids").exists)
    parent.kill()
    parent.wait(timeout=30)
    wait_until((tmp_path / "checkpoint").exists)
    wait_until(lambda: not find_processes(tmp_path))


def test_what_a_worker_asks_for_and_cannot_be_understood_gives_it_no_more_time(
    tmp_path: Path,
) -> None:
    file, whole = tmp_path / NEEDS_FILE, b'{"seconds": 40.5}'
    assert (read_needs(str(tmp_path)), read_grace(str(tmp_path), least=10)) == (0, 10)
    for content in (*list_damages(whole), b'{"seconds": Infinity}', b'{"seconds": null}'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"shutdown\.json: "):
            read_needs(str(tmp_path))
        assert read_grace(str(tmp_path), least=10) == 10
    file.write_bytes(whole)
    assert read_grace(str(tmp_path), least=10) == 40.5


# A worker whose announcement is cut off, and that does not leave by itself.
MUMBLING = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (folder / "shutdown.json").write_text('{"seconds": 4'))
(folder / "pids").write_text("ready")
while True:
    time.sleep(600)
"""

PARENT_OF_MUMBLING = f"""
import logging, os, sys
from pathlib import Path
from ft_pipeline.process import launch
logging.basicConfig()
launch.GRACE_SECONDS = 0.5
folder = Path(sys.argv[1])
{IMPORTS}
command = [sys.executable, str(folder / "mumbling.py"), str(folder)]
launch.run_in_group(command, {{}}, folder, None, imports)
"""


@pytest.mark.usefixtures("imports")
def test_the_launcher_names_an_announcement_that_it_cannot_understand(tmp_path: Path) -> None:
    (tmp_path / "mumbling.py").write_text(MUMBLING, encoding="utf-8")
    command = [sys.executable, "-c", PARENT_OF_MUMBLING, str(tmp_path)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "pids").exists)
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=30)
    assert f'{tmp_path}/shutdown.json: expected {{"seconds": 40.0}}' in said
    wait_until(lambda: not find_processes(tmp_path))


def find_processes(folder: Path) -> list[int]:
    """Return the ids of the processes that have a path in their command line, or are its test's."""
    mark = os.fsencode(f"FT_TEST_FOLDER={folder}\0")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environ = ((entry / name).read_bytes() for name in ("cmdline", "environ"))
            if (os.fsencode(folder) in command or mark in environ) and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def find_readers(file: Path) -> list[int]:
    """Return the ids of the other processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.readlink() == file:
                found.add(int(link.parts[2]))
    return sorted(found - {os.getpid()})


def test_grandchild_does_not_outlive_its_worker(tmp_path: Path, imports: Imports) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "pids"), "quits"]
    code, _ = run_in_group(command, {}, tmp_path, None, imports)
    assert code == 3
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_no_reaper_is_left(tmp_path: Path, imports: Imports) -> None:
    run_in_group([sys.executable, "-c", "pass"], {}, tmp_path, None, imports)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not [command for command in commands if b"reaper.py" in command]


def test_output_goes_to_the_log_and_its_last_lines_come_back(
    tmp_path: Path, imports: Imports
) -> None:
    code = "print('a' * 10); print('bar 1\\rbar 2'); import sys; sys.exit(7)"
    status, lines = run_in_group([sys.executable, "-c", code], {}, tmp_path, None, imports)
    assert status == 7
    assert lines == ["a" * 10, "bar 2"]
    assert (tmp_path / "worker.log").read_bytes() == b"a" * 10 + b"\nbar 2\n"


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
