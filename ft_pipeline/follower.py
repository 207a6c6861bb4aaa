"""Follows metrics.jsonl and sends its lines to one tracker. Started by `ft_pipeline/tracking.py`:

    python -m ft_pipeline.follower --tracker wandb|mlflow --metrics FILE --config tracking.json

One line of the file, and what is sent of it (everything but the step, under that step):

    {"step": 12, "epoch": 0.15, "loss": 2.31, "learning_rate": 9.1e-4, "seconds": 61.4}

Standard input is a pipe from the training's side. It says `finished` and closes when training ends,
or only closes when it fails or is killed; this process then sends what is left and ends.
"""

import argparse
import http.client
import json
import logging
import os
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ft_pipeline.sections.tracking import Mlflow, Wandb
from ft_pipeline.tracking import END_SECONDS, FINISHED, FollowerConfig, kill_tree

POLL_SECONDS = 0.5
RETRY_SECONDS = 3.0
ROWS_AT_ONCE = 100
ANSWER_SECONDS = 5.0
# MLflow takes at most 100 parameters a call, of at most 6000 characters.
PARAMS_AT_ONCE, PARAM_LENGTH = 100, 6000
INSTALL = "%s; nothing is sent. Install with pip install 'ft-pipeline[tracking]'"
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# Only what it is given: no console, code, git state, host statistics or list of packages.
WANDB_SENDS_NOTHING_ELSE: dict[str, Any] = {
    "console": "off",
    "save_code": False,
    "symlink": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

logger = logging.getLogger("follower")

Row = tuple[int, dict[str, float]]


class Tracker(Protocol):
    """Where rows go. `send` raises where they did not arrive; it is then called again."""

    def send(self, rows: list[Row]) -> None: ...
    def finish(self, succeeded: bool) -> None: ...


@dataclass
class Training:
    """What the pipe has said of the training."""

    ended: threading.Event = field(default_factory=threading.Event)
    succeeded: bool = False


class MetricsFile:
    """Reads new whole lines. A value of a step comes once, however often it is written.

    The file may not exist yet, and a resumed training writes it again from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._last_line = b""
        self._seen: set[tuple[int, str]] = set()

    def read_rows(self) -> list[Row]:
        """Return the rows that were not returned before, without the values that were."""
        rows = []
        for line in self._read_lines():
            step, values = parse_line(line)
            new = {key: value for key, value in values.items() if (step, key) not in self._seen}
            self._seen |= {(step, key) for key in new}
            if new:
                rows.append((step, new))
        return rows

    def _read_lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:  # written again from the start
                self._position, self._last_line = 0, b""
                file.seek(0)
            text = file.read()
        lines = text[: text.rfind(b"\n") + 1].splitlines(keepends=True)
        self._position += sum(map(len, lines))
        self._last_line = lines[-1] if lines else self._last_line
        return lines


def parse_line(line: bytes) -> Row:
    """Return the step and the numbers of a line; no numbers where it is not a line of metrics."""
    try:
        record = json.loads(line)
        step = int(record.pop("step"))
    except (ValueError, KeyError, TypeError, AttributeError):
        logger.warning("not a line of metrics, left out: %r", line[:200])
        return 0, {}
    numbers = {key: value for key, value in record.items() if type(value) in (int, float)}
    return step, numbers


def follow_file(file: MetricsFile, tracker: Tracker, training: Training) -> None:
    """Send rows until the training has ended; what fails is tried again, at the end once."""
    rows: list[Row] = []
    connected, trouble, last = False, "", False
    while not last:
        last = training.ended.is_set()
        rows += file.read_rows()
        try:
            while rows or not connected:
                tracker.send(rows[:ROWS_AT_ONCE])
                connected, trouble = True, ""
                del rows[:ROWS_AT_ONCE]
        # A tracker raises what it likes; nothing of it may end this loop.
        except Exception as error:
            if str(error) != trouble:
                logger.warning("not sent: %s", hide_secrets(f"{type(error).__name__}: {error}"))
            trouble = str(error)
        training.ended.wait(RETRY_SECONDS if trouble else POLL_SECONDS)
    if rows or not connected:
        logger.warning("the training has ended; %d rows were not sent", len(rows))
        return
    tracker.finish(training.succeeded)


def hide_secrets(text: str) -> str:
    """Take out the values of SECRETS, and user names and passwords in addresses."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def watch_training() -> Training:
    """Read the pipe in a thread, which ends this process where it stays too long after the end."""
    training = Training()

    def wait() -> None:
        said = b""
        while part := os.read(0, 64):
            said += part
        training.succeeded = said == FINISHED
        training.ended.set()
        time.sleep(END_SECONDS + 1)  # the training's side kills first, where it still lives
        kill_tree(os.getpid())

    threading.Thread(target=wait, daemon=True).start()
    return training


def open_tracker(name: str, config: FollowerConfig, folder: Path) -> Tracker:
    """Import the tracker's package and return a tracker; raises ImportError without it."""
    if name == "wandb":
        assert config.tracking.wandb is not None
        return WandbTracker(config.tracking.wandb, config, folder)
    assert config.tracking.mlflow is not None
    return MlflowTracker(config.tracking.mlflow, config)


def main() -> None:
    """Follow a metrics file until the training has ended."""
    parser = argparse.ArgumentParser(description="Send metrics.jsonl to a tracker.")
    parser.add_argument("--tracker", choices=["wandb", "mlflow"], required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {options.tracker}: %(message)s")
    os.nice(10)  # the training goes first
    training = watch_training()
    config = FollowerConfig.model_validate_json(options.config.read_text(encoding="utf-8"))
    try:
        tracker = open_tracker(options.tracker, config, options.config.parent)
        follow_file(MetricsFile(options.metrics), tracker, training)
    except ImportError as error:
        logger.warning(INSTALL, error)
    # A traceback could show an address with a password.
    except Exception as error:
        sys.exit(hide_secrets(f"{options.tracker}: {type(error).__name__}: {error}"))


class WandbTracker:
    """A run at Weights & Biases; an offline run in `folder` where the server cannot be used."""

    def __init__(self, section: Wandb, config: FollowerConfig, folder: Path) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self._wandb = wandb
        self._section, self._config = section, config
        self._folder = os.environ.get("WANDB_DIR", str(folder))
        self._run: Any = None

    def send(self, rows: list[Row]) -> None:
        if self._run is None:
            self._run = self._start()
        for step, values in rows:
            self._run.log(values, step=step)

    def finish(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)

    def _start(self) -> Any:
        try:
            return self._start_run(choose_wandb_mode(self._wandb))
        except self._wandb.Error as error:
            logger.warning("W&B refused the run (%s); it is kept offline", type(error).__name__)
            return self._start_run("offline")

    def _start_run(self, mode: str) -> Any:
        settings = self._wandb.Settings(
            mode=mode,
            project=self._section.project,
            entity=self._section.entity,
            run_name=self._config.run_name,
            root_dir=self._folder,
            init_timeout=10,
            finish_timeout=8,
            show_colors=False,
            **WANDB_SENDS_NOTHING_ELSE,
        )
        return self._wandb.init(settings=settings, config=self._config.settings)


def choose_wandb_mode(wandb: Any) -> str:
    """Return WANDB_MODE, else `online`, or `offline` without a login or a server that answers."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    server = wandb.setup().settings.base_url
    if not has_wandb_login(wandb.setup().settings):
        logger.info("not logged in (`wandb login` or WANDB_API_KEY): the run is kept offline")
        return "offline"
    if not is_answering(server):
        logger.warning("%s does not answer: the run is kept offline", hide_secrets(server))
        return "offline"
    return "online"


def has_wandb_login(settings: Any) -> bool:
    """Whether W&B will find credentials. `wandb.login` would ask the server, even unverified."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    named = settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    return bool(named or read_netrc_auth(host=settings.base_url))


def is_answering(url: str) -> bool:
    """Whether a server answers within ANSWER_SECONDS, and not with 500 or above."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(
            error.reason, ssl.SSLError
        )  # it is there; W&B has certificates of its own
    except (OSError, http.client.HTTPException):
        return False


class MlflowTracker:
    """A run at an MLflow server or in a folder. A call is one short try; the follower repeats."""

    def __init__(self, section: Mlflow, config: FollowerConfig) -> None:
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        # MLflow 3.17 refuses a folder without it.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        uri = section.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "./mlruns"
        self._client = MlflowClient(tracking_uri=uri)
        self._experiment, self._run_name = section.experiment, config.run_name
        self._params = flatten(config.settings)
        self._run_id = ""

    def send(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric, Param

        if not self._run_id:
            self._run_id = self._start()
        while self._params:
            some = list(self._params.items())[:PARAMS_AT_ONCE]
            params = [Param(key, value) for key, value in some]
            self._client.log_batch(self._run_id, params=params)
            self._params = dict(list(self._params.items())[PARAMS_AT_ONCE:])
        now = int(time.time() * 1000)
        metrics = [Metric(k, v, now, step) for step, values in rows for k, v in values.items()]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, succeeded: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")

    def _start(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else None
        experiment = experiment or self._client.create_experiment(self._experiment)
        run_id: str = self._client.create_run(experiment, run_name=self._run_name).info.run_id
        return run_id


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return `{"lora.r": "16"}` for `{"lora": {"r": 16}}`."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = str(value)[:PARAM_LENGTH]
    return flat


if __name__ == "__main__":
    main()
