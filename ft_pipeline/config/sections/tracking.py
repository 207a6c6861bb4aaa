"""The recipe's part on experiment trackers. They decide nothing: no fingerprint holds them."""

from pydantic import Field

from ft_pipeline.base.settings import Section


class Wandb(Section):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`; offline without one."""

    project: str = Field(default="ft_pipeline", min_length=1, description="Project of the run.")
    entity: str | None = Field(default=None, description="Team or user; null: the key's own.")


class Mlflow(Section):
    """MLflow. Credentials come from MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN."""

    tracking_uri: str | None = Field(
        default=None, description="Server or folder; null: MLFLOW_TRACKING_URI, else ./mlruns."
    )
    experiment: str = Field(default="ft_pipeline", min_length=1, description="Experiment name.")


class Tracking(Section):
    """A process beside the worker sends metrics.jsonl on, as well as it can."""

    wandb: Wandb | None = Field(default=None, description="Send to Weights & Biases.")
    mlflow: Mlflow | None = Field(default=None, description="Send to MLflow.")
