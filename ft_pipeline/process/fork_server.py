"""Starts workers in a third of a second: forks of a process that has imported their libraries.

torch, transformers, peft and trl take 7 s of processor time to import, and the default chain starts
ten workers. So a run keeps one fork server (`python -m ft_pipeline.worker.fork_server`): it imports
what a task needs, once, and forks for each task. The channel to it is a socket with one JSON
message a packet:

    server:   {"environment": {…}}                       what it was started with
    launcher: {"command": […], "imports": […], "environment": {…}, "folder": "…"}
              and descriptors: the output, the life line, the lock of the device
    child:    {"pid": 4711}                              it leads a group of its own, and waits
    server:   {"status": -9}                             how the child ended
    server:   {"refused": "…"}                           instead of a child

The child begins when the launcher has put a reaper beside it, and ends when the launcher's end of
the life line closes, or the server ends. Nothing is forked if a GPU is visible (CUDA does not
survive a fork) or if the environment differs in more than RUN_TIME_VARIABLES; such a worker starts
afresh. FT_FRESH_WORKERS=1 starts all of them afresh.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.base.settings import is_switched_on
from ft_pipeline.process.gpus import CPU, list_places
from ft_pipeline.process.tasks import BaseModelTask, TokensTask, TrainTask, WorkerTask

# The path of the socket of a server that serves several runs (`--listen`).
SERVER_VARIABLE = "FT_WORKER_SERVER"
MESSAGE_BYTES = 1 << 20
MOST_DESCRIPTORS = 3
POLL_SECONDS = 0.05
# Read while a worker runs, not when its libraries are imported: they may differ from the server's.
RUN_TIME_PREFIXES = ("FT_", "DAGSTER")
RUN_TIME_VARIABLES = ("PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES")

LOADING = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations.bitsandbytes",
)
TRAINING = (*LOADING, "peft", "trl.trainer.sft_trainer")

logger = logging.getLogger(__name__)


class ForkedProcess:
    """A child of the fork server: what the launcher needs of `subprocess.Popen`."""

    def __init__(self, server: "ForkServer", channel: socket.socket, pid: int, line: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._channel = channel
        self._life_line = line

    def begin(self) -> None:
        """Let the child, which waits for it, start its work."""
        with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile; poll() says so
            os.write(self._life_line, b"!")

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None and _is_readable(self._channel, 0.0):
            self._take_end()
        return self.returncode

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        while self.poll() is None:
            _is_readable(self._channel, POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Ask it to shut down."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Close the life line: a child that still runs ends."""
        os.close(self._life_line)
        self._server.take_back(self.poll() is not None)

    def _take_end(self) -> None:
        try:
            self.returncode = int(_receive(self._channel)["status"])
        except OSError:
            logger.warning("the server that worker %d was forked from has ended", self.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.returncode = -signal.SIGKILL


class ForkServer:
    """A fork server of this process; it starts with the first worker and ends with the process.

    It has one child at a time.
    """

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._in_use = threading.Lock()
        self._has_failed = False

    def fork(
        self,
        command: Sequence[str],
        imports: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        inherited: Sequence[int],
    ) -> ForkedProcess | None:
        """Fork a child that does what `command` (python -m …, or a script) would do.

        Its output goes to the descriptor `output`; it keeps `inherited`. Returns None where it must
        be started afresh: a GPU is visible, the environment differs, the server has a child or has
        failed, or refuses.
        """
        if self._has_failed or not self._in_use.acquire(blocking=False):
            return None
        read_end, write_end = os.pipe()
        pid = None
        try:
            request = {
                "command": list(command[1:]),
                "imports": list(imports),
                "environment": dict(environment),
                "folder": os.getcwd(),
            }
            pid = self._ask(request, (output, read_end, *inherited))
        except OSError as error:
            logger.debug("workers start afresh: %s", error)
            self._has_failed = True
            self.stop()
        except BaseException:
            self.stop()  # it may be importing for a request that nobody waits for any more
            raise
        finally:
            os.close(read_end)
            if pid is None:
                os.close(write_end)
                self._in_use.release()
        if pid is None or self._channel is None:
            return None
        return ForkedProcess(self, self._channel, pid, write_end)

    def take_back(self, has_ended: bool) -> None:
        """Have the server ready for the next child; a new one where the last has not ended."""
        if not has_ended:
            self.stop()
        self._in_use.release()

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int | None:
        """Ask for a child; return its process id, or None where the server must not fork it.

        Raises OSError where there is no server, or it ends.
        """
        if any(place.name != CPU for place in list_places()):
            return None
        if self._channel is None:
            self._channel = self._start(request["environment"])
            self._environment = _receive(self._channel)["environment"]
        if differing := find_differences(self._environment, request["environment"]):
            logger.debug("started afresh: %s differ from the fork server's", ", ".join(differing))
            return None
        message = json.dumps(request).encode()
        socket.send_fds(self._channel, [message], list(descriptors))
        answer = _receive(self._channel)
        if "pid" not in answer:
            logger.debug("started afresh: %s", answer)
            return None
        return int(answer["pid"])

    def _start(self, environment: Mapping[str, str]) -> socket.socket:
        if path := os.environ.get(SERVER_VARIABLE):
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            channel.connect(path)
            return channel
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = str(theirs.fileno())
            self._server = subprocess.Popen(
                [sys.executable, "-m", "ft_pipeline.worker.fork_server", "--channel", number],
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a worker that starts afresh shows what failed
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return channel

    def stop(self) -> None:
        """End the server; the next worker starts another one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None


def choose_imports(task: WorkerTask) -> Sequence[str] | None:
    """Return what a fork server imports before it forks for a task; None: it starts afresh."""
    if is_switched_on("FT_FRESH_WORKERS"):
        return None
    if isinstance(task, TrainTask) and task.settings.backend == "unsloth":
        return None  # unsloth has to be imported before transformers
    return LOADING if isinstance(task, BaseModelTask | TokensTask) else TRAINING


def find_differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return the variables that libraries may have read and that are not equal in both."""
    names = {name for name, value in {*ours.items()} ^ {*theirs.items()}}
    return sorted(
        name
        for name in names
        if not name.startswith(RUN_TIME_PREFIXES) and name not in RUN_TIME_VARIABLES
    )


def _receive(channel: socket.socket) -> dict[str, Any]:
    """Return the next message. Raises OSError where the other side has ended.

    Waits by polling, so that an interrupt of this process is raised here.
    """
    while not _is_readable(channel, POLL_SECONDS):
        pass
    if not (message := channel.recv(MESSAGE_BYTES)):
        raise ConnectionResetError("the fork server has ended")
    return dict(json.loads(message))


def _is_readable(channel: socket.socket, seconds: float) -> bool:
    return bool(select.select([channel], [], [], seconds)[0])
