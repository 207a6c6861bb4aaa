"""The fork server: imports the workers' libraries once, and forks for each task.

`process/fork_server.py` starts it with `--channel`, and defines the messages. With `--listen PATH`,
it waits at a Unix socket instead, and serves each run that connects (FT_WORKER_SERVER=PATH) with a
copy of itself, so that many short runs share one import.

Only a process with one thread may fork: libraries with their own threads leave locks behind that
nobody releases in the child. ALLOWED_THREADS names the one known to be harmless.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setproctitle import getproctitle, setproctitle

from ft_pipeline.process.fork_server import MESSAGE_BYTES, MOST_DESCRIPTORS, TRAINING
from ft_pipeline.worker.environment import set_library_defaults

ALLOWED_THREADS = ("jemalloc_bg_thd",)  # pyarrow's allocator; it starts again in the child


def main() -> None:
    """Serve until the launcher is gone; in a forked child, do the task."""
    parser = argparse.ArgumentParser(prog="python -m ft_pipeline.worker.fork_server")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--channel", type=int, help="Descriptor of a socket to the launcher.")
    where.add_argument("--listen", type=Path, help="Path of a Unix socket to serve many runs at.")
    arguments = parser.parse_args()
    environment = dict(os.environ)
    getproctitle()  # it finds its place by the environment that this process was started with
    set_library_defaults()
    if arguments.listen is None:
        channel = socket.socket(fileno=arguments.channel)
    else:
        channel = accept_runs(arguments.listen)
    with channel, contextlib.suppress(ConnectionError):  # the launcher has gone
        channel.send(json.dumps({"environment": environment}).encode())
        command = serve(channel)
    if command is not None:
        run(command)


def accept_runs(path: Path) -> socket.socket:
    """Fork a server for each run that connects; return, in that server, the socket to the run.

    The libraries are imported when the first run connects, so that all share them.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
        while True:
            channel, _ = listener.accept()
            prepare(
                TRAINING
            )  # what fails here fails in the worker that starts afresh, and is shown
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return channel
            channel.close()


def serve(channel: socket.socket) -> Sequence[str] | None:
    """Fork for each request; return its command in the child, None once the launcher is gone."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, MOST_DESCRIPTORS)
        if not message:
            return None
        request = json.loads(message)
        refusal = prepare(request["imports"])
        if refusal:
            channel.send(json.dumps({"refused": refusal}).encode())
        else:
            parent = os.getpid()
            if (child := os.fork()) == 0:
                become_worker(request, descriptors, parent, channel)
                return list(request["command"])
            _, status = os.waitpid(child, 0)
            channel.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def prepare(imports: Sequence[str]) -> str:
    """Import what a task needs; return why this process must not fork, or "" if it may."""
    try:
        for name in imports:
            importlib.import_module(name)
    except Exception as error:  # a worker that starts afresh shows it
        return f"{type(error).__name__}: {error}"
    if threads := list_other_threads():
        return f"it has threads: {', '.join(threads)}"
    gc.collect()
    gc.freeze()  # what is there lives to the end: the child shares it, and never looks through it
    return ""


def list_other_threads() -> list[str]:
    """Return the names of this process's threads, except the main one and harmless ones."""
    tasks = [entry for entry in Path("/proc/self/task").iterdir() if entry.name != str(os.getpid())]
    names = [(entry / "comm").read_text(encoding="utf-8").strip() for entry in tasks]
    return sorted(name for name in names if name not in ALLOWED_THREADS)


def become_worker(
    request: Mapping[str, Any], descriptors: Sequence[int], server: int, channel: socket.socket
) -> None:
    """Make the child like a freshly started worker; return once its reaper holds it."""
    output, life_line, *inherited = descriptors
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for descriptor in inherited:
        os.set_inheritable(descriptor, True)
    os.environ.clear()
    os.environ.update(request["environment"], FT_PARENT=str(server))
    set_library_defaults()
    os.chdir(request["folder"])
    setproctitle(shlex.join([sys.executable, *request["command"]]))  # what `ps` shows
    channel.send(json.dumps({"pid": os.getpid()}).encode())
    channel.close()
    if not os.read(life_line, 1):
        os._exit(128 + signal.SIGTERM)
    threading.Thread(target=_end_with_launcher, args=(life_line,), daemon=True).start()


def _end_with_launcher(life_line: int) -> None:
    os.read(life_line, 1)
    os.killpg(0, signal.SIGTERM)


def run(command: Sequence[str]) -> None:
    """Run like `python <command>`: `-m <module> …`, `-c <code> …` or a script."""
    kind, *rest = command
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(command)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
