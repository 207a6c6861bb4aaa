"""One process that has imported what workers need, for all workers of this pytest process.

By default each run of the pipeline keeps a fork server of its own (docs/architecture.md).
"""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest

from ft_pipeline.process.fork_server import (
    SERVER_VARIABLE,
    ForkedProcess,
    ForkServer,
    choose_imports,
)
from ft_pipeline.process.reaper import end_group
from ft_pipeline.process.tasks import WorkerTask

# Of whoever runs the tests, or set by pytest and by libraries that a test has imported.
NOT_A_USERS = ("FT_", "DAGSTER", "PYTEST_", "KMP_", "TORCHINDUCTOR_", "UNSLOTH_")
BEFORE_ALL_TESTS: dict[str, str] = {}  # the environment

# It gets SIGKILL (9) when the thread that started it ends, however that happens (prctl(2)).
SERVE = """
import ctypes, runpy
ctypes.CDLL(None).prctl(1, 9)
runpy.run_module("ft_pipeline.worker.fork_server", run_name="__main__", alter_sys=True)
"""


@functools.cache
def share_worker_server() -> Path:
    """Start the server, or find the one that runs; return its socket, for FT_WORKER_SERVER."""
    folder = tempfile.TemporaryDirectory(prefix="ft-")  # a socket's path is short
    path = Path(folder.name, "socket")
    command = [sys.executable, "-c", SERVE, "--listen", str(path)]
    environment = child_environment(BEFORE_ALL_TESTS)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    @atexit.register
    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    while not path.exists():
        assert process.poll() is None, "the worker server has ended"
        time.sleep(0.05)
    return path


def child_environment(surrounding: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command that a user of this machine types, without FT_…"""
    kept = {k: v for k, v in surrounding.items() if not k.startswith(NOT_A_USERS)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{surrounding['PATH']}",
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
    }


@contextlib.contextmanager
def started_worker(
    task: WorkerTask, config: Path, output: IO[bytes], **extra_env: str
) -> "Iterator[ForkedProcess | subprocess.Popen[bytes]]":
    """Start the worker of a task as the launcher does: a fork where it may be one, else afresh.

    `config` holds the task. All that it prints goes to `output`. No process of it is left behind.
    """
    command = [sys.executable, "-m", "ft_pipeline.worker", task.name, "--config", str(config)]
    own = {"FT_THREADS": "1", "FT_LOCKS": str(config.parent)} | extra_env
    environment = child_environment(os.environ) | own
    forked = None
    if (imports := choose_imports(task)) is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SERVER_VARIABLE, str(share_worker_server()))
            forked = ForkServer().fork(command, imports, environment, output.fileno(), ())
    worker = forked or subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        if forked:
            forked.begin()
        yield worker
    finally:
        end_group(worker.pid, lambda: 0.0)
        worker.wait()
        if forked:
            forked.close()
