"""Environment variables that a worker's libraries read on import."""

import os

# trl reports each trainer that is made, and imports wandb and mlflow where they are installed.
NO_TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def set_library_defaults() -> None:
    """Set the variables; call before anything imports numpy, torch or a Hugging Face library."""
    os.environ.update(NO_TELEMETRY)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Its threads would start with numpy, and a fork server must have none. torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
