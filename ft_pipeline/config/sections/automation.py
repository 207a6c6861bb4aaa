"""The recipe's settings for automatic reruns. They affect no result: no fingerprint holds them."""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from ft_pipeline.base.durations import Duration
from ft_pipeline.base.settings import Section


class Automation(Section):
    """When `refresh_<recipe>` runs automatically; needs the Dagster daemon."""

    schedule: str | None = Field(
        default=None,
        description="Cron expression with five fields (`0 3 * * 1`: Mondays at three): check "
        "upstream and rebuild what changed; null: no schedule.",
    )
    timezone: str = Field(
        default="UTC",
        description="Time zone of `schedule`, as an IANA name such as `Europe/Paris`.",
    )
    on_new_data: bool = Field(
        default=False, description="Run when a source has a new revision or new dropped files."
    )
    min_interval: Duration = Field(
        default="0s",
        description="Minimum time between two runs started by new data (`30m`, `12h`, `7d`); data "
        "that arrives sooner waits and is built together.",
    )
    min_new_rows: int = Field(
        default=0,
        ge=0,
        description="A run started by new data stops after the raw files unless they hold at "
        "least this many rows that are not in the newest examples; the rows wait for more.",
    )
    paused: bool = Field(
        default=False,
        description="Neither the schedule nor new data starts a run of this recipe.",
    )

    @field_validator("schedule")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        from croniter import croniter

        if value is not None and (len(value.split()) != 5 or not croniter.is_valid(value)):
            raise ValueError(
                "expected a cron expression with five fields (minute hour day month weekday), for "
                "example `0 3 * * 1`"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                "no such time zone; expected an IANA name such as `Europe/Paris`"
            ) from error
        return value
