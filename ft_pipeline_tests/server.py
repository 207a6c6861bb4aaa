"""A real `dagster dev` over a test's project: web server and daemon, asked through GraphQL."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from ft_pipeline_tests.conftest import TinyProject

LOCATION = "ft_pipeline.definitions"
REPOSITORY = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"}

LAUNCH = """
mutation($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


def describe_launch(job: str, *assets: str) -> dict[str, Any]:
    """Return the parameters of LAUNCH for a job, all of it or some assets."""
    selector = {**REPOSITORY, "pipelineName": job, "assetCheckSelection": None}
    if assets:
        selector["assetSelection"] = [{"path": asset.split("/")} for asset in assets]
    return {"selector": selector, "runConfigData": {}, "mode": "default"}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Return the first true value of a condition; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return found


def processes_of(project: TinyProject, mark: str = "") -> list[psutil.Process]:
    """Return the living processes that have the project's folder in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(project.root) in line and mark in line and process.info["status"] != "zombie":
            found.append(process)
    return found


def is_training(project: TinyProject) -> bool:
    """Say whether a training has logged a step and not yet published its model."""
    return bool(list(project.store.rglob("*.draft-*/meta/metrics.jsonl")))


@contextmanager
def halted_training(project: TinyProject) -> Iterator[None]:
    """Wait for a training and halt it: what happens inside comes during it on any machine."""
    wait_until(lambda: is_training(project), "the training")
    (worker,) = processes_of(project, "ft_pipeline.worker train")
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


@dataclass(frozen=True)
class Server:
    """A running `dagster dev`."""

    process: "subprocess.Popen[str]"
    port: int

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a GraphQL query and return its data."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def is_up(self) -> bool:
        try:
            return bool(self.ask("{ version }"))
        except OSError:
            return False


@contextmanager
def dagster_dev(project: TinyProject, **extra_env: str) -> Iterator[Server]:
    """Start `dagster dev` on a free port of loopback and end it, with all its children."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["dagster", "dev", "--host", "127.0.0.1", "-m", LOCATION, "--port", str(port)]
    process = project.start(*command, log=project.root / "dev.log", **extra_env)
    server = Server(process, port)
    try:
        wait_until(server.is_up, "the web server", 120)
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
