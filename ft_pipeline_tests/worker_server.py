"""One process that has imported what workers need, for all commands of this pytest process.

By default each run of the pipeline keeps a fork server of its own (docs/architecture.md).
"""

import atexit
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

# It gets SIGKILL (9) when the thread that started it ends, however that happens (prctl(2)).
SERVE = """
import ctypes, runpy
ctypes.CDLL(None).prctl(1, 9)
runpy.run_module("ft_pipeline.worker.fork_server", run_name="__main__", alter_sys=True)
"""


def start_worker_server(environment: Mapping[str, str]) -> Path:
    """Start the server with an environment; return its socket, for FT_WORKER_SERVER."""
    folder = tempfile.TemporaryDirectory(prefix="ft-")  # a socket's path is short
    path = Path(folder.name, "socket")
    command = [sys.executable, "-c", SERVE, "--listen", str(path)]
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
