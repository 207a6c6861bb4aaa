"""Runs that are interrupted in the middle of a training: nothing is left running, nothing is lost.

The processes are found by the project's folder, which every worker has in its command line.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.jsonl import read_jsonl
from ft_pipeline_tests.conftest import TinyProject
from ft_pipeline_tests.server import (
    processes_of,
    wait_until,
)

pytestmark = pytest.mark.slow

# Another fingerprint than the built one, and more steps than the test waits for.
LONG = {"FT_OVERRIDES": "training.max_steps=60 training.save_steps=5"}
COMMAND = ["dagster", "asset", "materialize", "--select", "finetuned_model"]


def training_steps(project: TinyProject) -> int:
    files = list((project.store / "finetuned_model").glob("*.draft-*/meta/metrics.jsonl"))
    return len(read_jsonl(files[0])) if files else 0


def start(project: TinyProject, **extra_env: str) -> "subprocess.Popen[str]":
    return project.start(*COMMAND, log=project.root / "command.log", **LONG, **extra_env)


@pytest.mark.parametrize(
    ("sign", "fresh"),
    [
        (signal.SIGINT, "0"),
        (signal.SIGTERM, "0"),
        (signal.SIGKILL, "0"),
        (signal.SIGKILL, "1"),  # each way with each signal: process/test_launch.py
    ],
)
def test_interrupted_command_leaves_no_process_and_no_half_artifact(
    project: TinyProject, sign: signal.Signals, fresh: str
) -> None:
    whole = sorted(project.store.rglob("manifest.json"))
    command = start(project, FT_FRESH_WORKERS=fresh)
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
    assert report["resumed_from_step"] > 7  # written when it was asked to leave
    assert not list((project.store / "checkpoints").rglob("step-*"))


def read_report(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


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
