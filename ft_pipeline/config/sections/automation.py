"""The recipe's part on reruns by themselves. It decides nothing: no fingerprint holds it."""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from ft_pipeline.base.durations import Duration
from ft_pipeline.base.settings import Section


class Automation(Section):
    """When `refresh_<recipe>` runs without being asked to; the Dagster daemon looks after it."""

    schedule: str | None = Field(
        default=None,
        description="Cron expression of five fields, `0 3 * * 1` for Mondays at three: ask "
        "upstream and build what changed; null: no schedule.",
    )
    timezone: str = Field(
        default="UTC", description="Time zone of `schedule` by its IANA name, `Europe/Paris`."
    )
    on_new_data: bool = Field(
        default=False, description="Run when a source has a new revision or dropped files."
    )
    min_interval: Duration = Field(
        default="0s",
        description="At least this long between two runs that new data starts (`30m`, `12h`, "
        "`7d`); what comes sooner waits, and is built together.",
    )
    min_new_rows: int = Field(
        default=0,
        ge=0,
        description="A run that new data started stops after the raw files unless they hold so "
        "many rows that the newest examples were not made from; the rows wait for more.",
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
                "expected a cron expression of five fields (minute hour day month weekday), for "
                "example `0 3 * * 1`"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("no such time zone; expected an IANA name: `Europe/Paris`") from error
        return value
