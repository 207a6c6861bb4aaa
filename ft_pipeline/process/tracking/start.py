"""Sends training metrics to W&B or MLflow, as well as it can, from processes beside the training.

Training only writes metrics.jsonl. For each tracker `follow` keeps a follower beside it
(follower.py), which reads that file and this one, `tracking.json` beside its log:

    {"run_name": "quiz-7b1f", "tracking": {"wandb": {"project": "ft_pipeline", "entity": null},
     "mlflow": null}, "settings": {"learning_rate": 0.0002, "lora": {"r": 16}}}

Nothing that a follower does, or fails to do, reaches the training. Credentials are only ever in the
environment: none is written to the configuration or the log.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import psutil

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.records import write_atomically
from ft_pipeline.base.settings import Section
from ft_pipeline.config.sections.tracking import Tracking

SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
END_SECONDS = 10.0
FINISHED = b"finished\n"

logger = logging.getLogger(__name__)

Follower = subprocess.Popen[bytes]


class FollowerConfig(Section):
    """What a follower is told."""

    run_name: str
    tracking: Tracking
    settings: dict[str, Any]


@contextlib.contextmanager
def follow(
    metrics_file: Path, tracking: Tracking, run_name: str, settings: Mapping[str, Any], log: Path
) -> Iterator[None]:
    """Keep a follower a configured tracker for as long as the context lasts.

    `metrics_file` need not exist yet; `settings` are shown with the run; the followers' output goes
    to `log`. Leaving takes up to END_SECONDS, then what is left of the followers is killed.
    Whatever goes wrong here is one warning.
    """
    followers = _start(metrics_file, tracking, run_name, settings, log)
    said = b""
    try:
        yield
        said = FINISHED
    finally:
        _end(followers, said, log)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and its descendants, also those in a session of their own (wandb-core)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def _start(
    metrics_file: Path, tracking: Tracking, run_name: str, settings: Mapping[str, Any], log: Path
) -> list[Follower]:
    followers: list[Follower] = []
    trackers = [name for name in ("wandb", "mlflow") if getattr(tracking, name) is not None]
    if not trackers:
        return []
    try:
        config = FollowerConfig(run_name=run_name, tracking=tracking, settings=dict(settings))
        file = _write_config(config, log)
        for tracker in trackers:
            with log.open("ab") as output:
                followers.append(_start_follower(tracker, metrics_file, file, output))
    # Whatever it is: a tracker stops no training.
    except Exception as error:
        logger.warning("metrics do not reach every tracker of %s: %s", ", ".join(trackers), error)
    return followers


def _write_config(config: FollowerConfig, log: Path) -> Path:
    mlflow = config.tracking.mlflow
    if mlflow and mlflow.tracking_uri and urlsplit(mlflow.tracking_uri).password:
        raise PipelineError(
            "tracking.mlflow.tracking_uri contains a password. Remove it and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_name("tracking.json")
    write_atomically(file, config.model_dump_json(indent=1) + "\n", durable=False)
    return file


def _start_follower(tracker: str, metrics: Path, config: Path, output: IO[bytes]) -> Follower:
    command = [sys.executable, "-m", "ft_pipeline.process.tracking.follower", "--tracker", tracker]
    return subprocess.Popen(
        [*command, "--metrics", str(metrics), "--config", str(config)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _end(followers: Sequence[Follower], said: bytes, log: Path) -> None:
    """Tell the followers that training has ended; wait; kill."""
    deadline = time.monotonic() + END_SECONDS
    try:
        for follower in followers:
            _say(follower, said)
        for follower in followers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.wait(timeout=max(deadline - time.monotonic(), 0))
    finally:
        late = [follower for follower in followers if follower.poll() is None]
        for follower in followers:
            _kill(follower)
        if late:
            logger.warning(
                "a tracker did not finish within %.0f s and was killed. See %s", END_SECONDS, log
            )


def _say(follower: Follower, said: bytes) -> None:
    """Write a last word and close the pipe; a follower that is gone does not hear it."""
    assert follower.stdin is not None
    with contextlib.suppress(OSError):
        follower.stdin.write(said)
        follower.stdin.flush()
    with contextlib.suppress(OSError):
        follower.stdin.close()


def _kill(follower: Follower) -> None:
    if follower.poll() is None:
        kill_tree(follower.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(follower.pid, signal.SIGKILL)
    follower.wait()


def hide_credentials(text: str) -> str:
    """Take out the values of SECRETS, and user names and passwords in addresses."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]*@", "://***@", text)
