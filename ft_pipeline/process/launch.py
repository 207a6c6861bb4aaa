"""Starts, watches and ends the worker: the child process in which everything with torch runs.

The worker is `python -m ft_pipeline.worker <task> --config <run folder>/config.json`, in a process
group of its own. However the launcher ends (done, failed, cancelled, SIGTERM, SIGKILL), no process
of that group is left: a reaper waits on a pipe that closes with the launcher, and the worker checks
for its parent itself. If a task needs the device, the group and the reaper hold its lock as well.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ft_pipeline.base.console import ensure_shown
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.records import write_atomically
from ft_pipeline.process.device_lock import Device
from ft_pipeline.process.fork_server import ForkedProcess, ForkServer, choose_imports
from ft_pipeline.process.output import MARKED, OutputReader
from ft_pipeline.process.reaper import end_group, read_grace, read_needs
from ft_pipeline.process.tasks import LOG_FILE, TASK_FILE, WorkerTask

if TYPE_CHECKING:
    import dagster as dg

GRACE_SECONDS = 30.0
REAPER_GRACE_SECONDS = 10.0
LAST_LINES = 30

logger = logging.getLogger(__name__)

_fork_server = ForkServer()


class WorkerFailed(PipelineError):
    """The worker ended without a result."""


def run_worker(
    context: "dg.AssetExecutionContext", task: WorkerTask, runs: Path, device: Device | None
) -> dict[str, Any]:
    """Run a task in a worker through Dagster Pipes and return what it reported.

    `runs` gets a folder with config.json and worker.log; `device` is what is held for it, if it
    needs one. Raises WorkerFailed with the worker's message, or its last lines, if it fails, is
    killed, or ends without a report.
    """
    import dagster as dg

    # Dagster 1.13 warns of a preview function that its own Pipes session calls.
    warnings.filterwarnings("ignore", message=".*expected_writer_count.*")
    folder = _write_config(task, runs)
    with dg.open_pipes_session(
        context=context.op_execution_context,
        context_injector=dg.PipesTempFileContextInjector(),
        message_reader=dg.PipesTempFileMessageReader(),
    ) as session:
        command = worker_command(task.name, folder / TASK_FILE)
        bootstrap, imports = session.get_bootstrap_env_vars(), choose_imports(task)
        code, lines = run_in_group(command, bootstrap, folder, device, imports)
    messages = session.get_custom_messages()
    for message in messages:
        if isinstance(message, dict) and "error" in message:
            raise WorkerFailed(f"{message['error']}\n(worker's log: {folder / LOG_FILE})")
    reports = [m["report"] for m in messages if isinstance(m, dict) and "report" in m]
    if code != 0 or not reports:
        raise WorkerFailed(explain_end(task.name, code, lines, folder))
    return dict(reports[-1])


def worker_command(task: str, config: Path) -> list[str]:
    """Return the command line of a worker; it can be repeated by hand."""
    return [sys.executable, "-m", "ft_pipeline.worker", task, "--config", str(config)]


def run_in_group(
    command: list[str],
    extra_env: Mapping[str, str],
    folder: Path,
    device: Device | None = None,
    imports: Sequence[str] | None = None,
) -> tuple[int, list[str]]:
    """Run a command in a process group of its own; return its exit code and its last lines.

    It works on `device`, whose lock it inherits. With `imports`, it is forked, if possible, from a
    process that has imported these modules (fork_server.py).

    Its output goes to `folder / "worker.log"`, and its own log records to this process's loggers.
    When this process is interrupted, the worker gets SIGTERM and GRACE_SECONDS to shut down (a
    training whose steps take longer says so in shutdown.json), then its group SIGTERM and SIGKILL.
    """
    own_env = {MARKED: "1", "FT_PARENT": str(os.getpid())}
    shown = device.environment if device else {}
    environment = {**os.environ, **own_env, **extra_env, **shown}
    inherited = (device.descriptor,) if device else ()
    output, write_end = os.pipe()
    try:
        process = _start(command, environment, write_end, inherited, imports)
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(write_end)
    tail: deque[str] = deque(maxlen=LAST_LINES)
    source = os.fdopen(output, "rb")
    reader = threading.Thread(target=_forward, args=(source, folder / LOG_FILE, tail), daemon=True)
    with contextlib.ExitStack() as stack:
        try:
            reader.start()
            stack.enter_context(_reaper_of(process.pid, folder, inherited))
            if isinstance(process, ForkedProcess):
                process.begin()
            _wait(process)
        except BaseException:
            _ask_to_shut_down(process, folder)
            raise
        finally:
            end_group(process.pid, lambda: 2.0)  # grandchildren that outlived the worker
            process.wait()
            if isinstance(process, ForkedProcess):
                process.close()
            reader.join(timeout=5)
    assert process.returncode is not None, "it was waited for"
    return process.returncode, list(tail)


def _start(
    command: list[str],
    environment: Mapping[str, str],
    output: int,
    inherited: tuple[int, ...],
    imports: Sequence[str] | None,
) -> "subprocess.Popen[bytes] | ForkedProcess":
    if imports is not None:
        forked = _fork_server.fork(command, imports, environment, output, inherited)
        if forked is not None:
            return forked
    return subprocess.Popen(
        command,
        env=environment,
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def explain_end(task: str, code: int, lines: list[str], folder: Path) -> str:
    """Explain why a worker ended without a result, and what to do."""
    if code == -signal.SIGKILL:
        what = (
            "was killed (signal 9), probably because memory ran out. Lower training.batch_size or "
            "tokens.max_length, or close other programs"
        )
    elif code < 0:
        what = f"was ended by signal {-code} ({signal.Signals(-code).name})"
    elif code == 0:
        what = "ended with exit code 0 but without a report, so its work is not used"
    else:
        what = f"failed with exit code {code}"
    shown = "\n".join(lines[-LAST_LINES:])
    command = " ".join(worker_command(task, folder / TASK_FILE)[1:])
    return (
        f"The worker of task {task} {what}.\nIts last lines:\n{shown}\n"
        f"Whole log: {folder / LOG_FILE}. To rerun it by hand: python {command}"
    )


def _write_config(task: WorkerTask, runs: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    folder = runs / f"{stamp}-{task.name}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    text = task.model_dump_json(indent=1)
    write_atomically(folder / TASK_FILE, text + "\n", durable=False)
    return folder


@contextlib.contextmanager
def _reaper_of(group: int, folder: Path, inherited: tuple[int, ...]) -> Iterator[None]:
    """Keep a reaper next to the group for as long as this process lives.

    It inherits the device's lock, which a grandchild that another program started does not.
    """
    read_end, write_end = os.pipe()
    script = str(Path(__file__).with_name("reaper.py"))
    given = (str(group), str(REAPER_GRACE_SECONDS), str(folder))
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", script, *given],
        pass_fds=inherited,
        stdin=read_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_end)
    try:
        yield
    finally:
        reaper.kill()
        reaper.wait()
        os.close(write_end)


def _wait(process: "subprocess.Popen[bytes] | ForkedProcess") -> None:
    """Wait by polling, so that an interrupt of this process is raised here."""
    while process.poll() is None:
        time.sleep(0.05)


def _ask_to_shut_down(process: "subprocess.Popen[bytes] | ForkedProcess", folder: Path) -> None:
    """Send SIGTERM and wait: a training writes a checkpoint first, and may need a step for it."""
    logger.info("interrupted: asking the worker to shut down (up to %.0f s)", GRACE_SECONDS)
    process.terminate()
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < read_grace(
        str(folder), GRACE_SECONDS
    ):
        time.sleep(0.1)
    try:
        read_needs(str(folder))
    except ValueError as error:
        logger.warning("%s; the worker had %.0f s to shut down", error, GRACE_SECONDS)


def _forward(source: IO[bytes], log: Path, tail: "deque[str]") -> None:
    """Write the worker's output to its log, show its own records; remember the last lines."""
    ensure_shown()
    with log.open("w", encoding="utf-8") as file, contextlib.closing(OutputReader(file, tail)) as r:
        while chunk := os.read(source.fileno(), 65536):
            r.feed(chunk)
