"""The two trackers that a follower can send to: W&B and MLflow. Imported packages are theirs alone.

Rows are (step, values), for example (12, {"loss": 2.31, "learning_rate": 9.1e-4}).
"""

import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ft_pipeline.config.sections.tracking import Mlflow, Wandb
from ft_pipeline.process.tracking.start import FollowerConfig, hide_credentials

ANSWER_SECONDS = 5.0
# MLflow takes at most 100 parameters a call, of at most 6000 characters.
PARAMS_AT_ONCE, PARAM_LENGTH = 100, 6000
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


def open_tracker(name: str, config: FollowerConfig, folder: Path) -> Tracker:
    """Import the tracker's package and return a tracker; raises ImportError without it."""
    if name == "wandb":
        assert config.tracking.wandb is not None
        return WandbTracker(config.tracking.wandb, config, folder)
    assert config.tracking.mlflow is not None
    return MlflowTracker(config.tracking.mlflow, config)


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
        logger.warning("%s does not answer: the run is kept offline", hide_credentials(server))
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
