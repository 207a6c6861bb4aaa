"""Runs the project's commands in forks of a process that has imported them.

A command such as `ft-pipeline status` imports for most of its time. The server has imported what
the commands use, torch and its like excepted, and forks for each of them. The fork is the command
from there on: session, folder, environment, standard streams and exit are its own. A command whose
environment differs from the server's in more than FREE gets a process of its own instead: modules
read variables while they are imported.

What a fork does not show: that the command starts at all (its imports, its script), and that it
does not depend on Python's hash seed, which all forks of one server share.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from ft_pipeline_tests.tiny_model import ROOT

COMMANDS = ("ft-pipeline", "dagster")
# Variables that no module below reads while it is imported (test_command_server.py).
FREE = re.compile(
    r"(FT|HF|KAGGLE|AWS)_.*|KAGGLEHUB_CACHE|https?_proxy|DAGSTER_HOME"
    r"|DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME"
)
# What commands import beside the project's own modules.
LIBRARIES = (
    "alembic",
    "dagster._cli",
    "dagster._core.definitions.antlr_asset_selection.antlr_asset_selection",
    "dagster._core.execution.execute_in_process",
    "dagster._core.instance.runs.run_domain",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
    "dagster._core.workspace.autodiscovery",
    "duckdb",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "sqlalchemy.dialects.sqlite",
    "upath.implementations.local",
)
# torch is the worker's; the definitions are those of the project that they are loaded in.
LEFT_OUT = re.compile(r"ft_pipeline\.(worker\b.*|definitions|cli\.__main__|process\.reaper)")


def import_all() -> None:
    """Import what the commands use."""
    for name in LIBRARIES:
        importlib.import_module(name)
    package = importlib.import_module("ft_pipeline")
    for module in pkgutil.walk_packages(package.__path__, "ft_pipeline.", onerror=_raise):
        if not LEFT_OUT.fullmatch(module.name):
            importlib.import_module(module.name)


def _raise(name: str) -> NoReturn:
    raise ImportError(name)


class CommandServer:
    """The client's side: a server that lives until this process ends or `close` is called."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._fixed = _fixed(environment)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ft_pipeline_tests.command_server", str(theirs.fileno())],
                cwd=ROOT,
                env=self._fixed,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def can_run(self, command: tuple[str, ...], environment: Mapping[str, str]) -> bool:
        """Say whether a fork would do what a process of its own does."""
        return command[0] in COMMANDS and _fixed(environment) == self._fixed

    def run(
        self, command: tuple[str, ...], cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as `subprocess.run` does, with no standard input."""
        request = {"command": command, "cwd": str(cwd), "environment": dict(environment)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            ours,
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        ):
            with theirs:
                given = [theirs.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(self._channel, [json.dumps(request).encode()], given)
            code = _wait(ours, command, timeout)
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), err.read())

    def close(self) -> None:
        """Have the server end, and wait for it."""
        self._channel.close()
        self._process.wait(timeout=60)


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not FREE.fullmatch(name)}


def _wait(answers: socket.socket, command: tuple[str, ...], timeout: float) -> int:
    """Return the exit code; kill the command's session where it takes longer than `timeout`."""
    pid = int(_receive(answers))
    answers.settimeout(timeout)
    try:
        return int(_receive(answers))
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(command, timeout) from None


def _receive(answers: socket.socket) -> bytes:
    answer = answers.recv(64)
    if not answer:
        raise RuntimeError("the command server has died; its errors are on standard error")
    return answer


def serve(channel: socket.socket) -> Callable[[], object] | None:
    """Fork for each request. Return in a fork the command, in the server None at the end."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the file descriptor of the process
    while True:
        ready, _, _ = select.select([channel, *running], [], [])
        for process in [found for found in ready if found is not channel]:
            pid, answers = running.pop(process)
            _, status = os.waitpid(pid, 0)
            os.close(process)
            with answers, contextlib.suppress(OSError):  # who asked may have given up
                answers.send(str(os.waitstatus_to_exitcode(status)).encode())
        if channel in ready:
            message, given, _, _ = socket.recv_fds(channel, 1 << 20, 3)
            if not message:
                return None
            answers, streams = socket.socket(fileno=given[0]), given[1:]
            if (pid := os.fork()) == 0:
                for other in (channel, answers, *(kept for _, kept in running.values())):
                    other.close()
                for other_process in running:
                    os.close(other_process)
                return _become(json.loads(message), streams)
            for stream in streams:
                os.close(stream)
            running[os.pidfd_open(pid)] = (pid, answers)
            answers.send(str(pid).encode())


def _become(request: dict[str, object], streams: list[int]) -> Callable[[], object]:
    """Make this process the one that was asked for; return the command's function."""
    os.setsid()
    for target, stream in enumerate(streams, start=1):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    name, *arguments = request["command"]  # type: ignore[misc]
    script = Path(sys.executable).with_name(name)
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    # As in a script, not `python -m`: click prints the name of the program by it.
    sys.modules["__main__"].__package__ = None
    (entry,) = entry_points(group="console_scripts", name=name)
    command: Callable[[], object] = entry.load()
    return command


def main() -> None:
    """Serve until the client has gone; in a fork: be the command."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    ending = Ending()
    atexit.register(ending.leave)  # the first, so the last to be called
    import_all()
    gc.freeze()  # so that a collection in a fork copies none of it
    command = serve(channel)
    if command is not None:
        try:
            sys.exit(command())
        except SystemExit as ended:
            ending.note(ended)
            raise


class Ending:
    """Ends a fork when its threads and exit handlers have; to take modules down costs 0.5 s."""

    code = 1  # what an exception exits with

    def note(self, ended: SystemExit) -> None:
        """Remember the exit code; a text is printed by Python, and is a failure."""
        self.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)

    def leave(self) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)


if __name__ == "__main__":
    main()
