"""Recipe settings for experiment trackers. They affect no result: no fingerprint holds them."""

from pydantic import Field

from ft_pipeline.base.settings import Section


class Wandb(Section):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`; offline without one."""

    project: str = Field(
        default="ft_pipeline", min_length=1, description="Project that receives the run."
    )
    entity: str | None = Field(
        default=None, description="Team or user; null: the default of the API key."
    )


class Mlflow(Section):
    """MLflow. Credentials come from MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN."""

    tracking_uri: str | None = Field(
        default=None, description="Server or folder; null: MLFLOW_TRACKING_URI, otherwise ./mlruns."
    )
    experiment: str = Field(default="ft_pipeline", min_length=1, description="Experiment name.")


class Tracking(Section):
    """Trackers to copy metrics to. A process next to the worker does this, best effort."""

    wandb: Wandb | None = Field(default=None, description="Send metrics to Weights & Biases.")
    mlflow: Mlflow | None = Field(default=None, description="Send metrics to MLflow.")
