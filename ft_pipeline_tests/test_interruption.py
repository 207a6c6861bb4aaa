"""Runs that are interrupted in the middle of a training: nothing is left running, nothing is lost.

The processes are found by the project's folder, which every worker has in its command line.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ft_pipeline.jsonl import read_jsonl
from ft_pipeline_tests.conftest import TinyProject

pytestmark = pytest.mark.slow

# Another fingerprint than the built one, and more steps than the test waits for.
LONG = {"FT_OVERRIDES": "training.max_steps=60 training.save_steps=5"}
COMMAND = ["dagster", "asset", "materialize", "--select", "finetuned_model"]


def processes_of(project: TinyProject, mark: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(project.root) in line and mark in line and process.info["status"] != "zombie":
            found.append(process)
    return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def training_steps(project: TinyProject) -> int:
    files = list((project.store / "finetuned_model").glob("*.draft-*/meta/metrics.jsonl"))
    return len(read_jsonl(files[0])) if files else 0


def start(project: TinyProject) -> "subprocess.Popen[bytes]":
    # A session of its own, as in a terminal: a signal to the command is not one to its worker.
    log = (project.root / "command.log").open("wb")
    return subprocess.Popen(
        COMMAND,
        cwd=project.root,
        env=project.environment | LONG,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_command_leaves_no_process_and_no_half_artifact(
    project: TinyProject, sign: signal.Signals
) -> None:
    whole = sorted(project.store.rglob("manifest.json"))
    command = start(project)
    wait_until(lambda: training_steps(project) > 7, "the training")
    assert processes_of(project, "ft_pipeline.worker")
    os.kill(command.pid, sign)
    code = command.wait(timeout=60)
    assert code != 0
    wait_until(lambda: not processes_of(project, "ft_pipeline.worker"), "the worker's end", 40)
    assert sorted(project.store.rglob("manifest.json")) == whole
    if sign != signal.SIGKILL:
        assert not list(project.store.rglob("*.draft-*"))
    # The next run neither waits for a dead owner nor uses what was left, but the checkpoint.
    done = project.run(*COMMAND, **LONG)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [
        read_report(file) for file in project.store.glob("finetuned_model/*/meta/report.json")
    ]
    (report,) = [report for report in reports if report["steps"] == 60]
    assert report["resumed_from_step"] >= 5
    assert not list((project.store / "checkpoints").rglob("step-*"))


def read_report(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    assert "errors" not in answer, answer
    return dict(answer["data"])


def is_up(port: int) -> bool:
    try:
        return bool(ask(port, "{ version }"))
    except OSError:
        return False


LAUNCH = """
mutation($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def test_cancel_in_the_ui_ends_the_worker(project: TinyProject) -> None:
    port = free_port()
    log = (project.root / "dev.log").open("wb")
    server = subprocess.Popen(
        [
            *["dagster", "dev", "--host", "127.0.0.1", "-m", "ft_pipeline.definitions", "--port"],
            str(port),
        ],
        cwd=project.root,
        env=project.environment | LONG,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Started in the background of a script it would ignore Ctrl-C, and SIGTERM with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    try:
        wait_until(lambda: is_up(port), "the web server", 90)
        selector = {
            "repositoryLocationName": "ft_pipeline.definitions",
            "repositoryName": "__repository__",
            "pipelineName": "build_quiz",
            "assetSelection": [{"path": ["finetuned_model"]}],
            "assetCheckSelection": None,
        }
        params = {"selector": selector, "runConfigData": {}, "mode": "default"}
        launched = ask(port, LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id = launched["run"]["runId"]
        wait_until(lambda: training_steps(project) > 1, "the training")
        assert ask(port, TERMINATE, id=run_id)["terminateRun"]["__typename"] == (
            "TerminateRunSuccess"
        )
        wait_until(lambda: not processes_of(project, "ft_pipeline.worker"), "the end", 60)
        wait_until(
            lambda: ask(port, STATUS, id=run_id)["runOrError"]["status"] == "CANCELED",
            "the status CANCELED",
            60,
        )
        assert not list(project.store.rglob("*.draft-*"))
        assert list((project.store / "checkpoints").rglob("step-*/complete.json"))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_step_is_repeated_by_hand_from_its_config(project: TinyProject) -> None:
    """`config.json` of a run is enough to repeat it, without Dagster and with equal content."""
    config = next((project.store / "runs").glob("*-train-*/config.json"))
    data = json.loads(config.read_text(encoding="utf-8"))
    done = project.run(sys.executable, "-m", "ft_pipeline.worker", "train", "--config", str(config))
    assert done.returncode == 0, done.stderr[-2000:]
    original = next(project.store.glob("finetuned_model/*/adapter_model.safetensors"))
    again = config.parent / "output" / "adapter_model.safetensors"
    assert not Path(data["output"]).exists()  # it was published into the store
    assert again.read_bytes() == original.read_bytes()
