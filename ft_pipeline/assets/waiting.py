"""The logger of `ft-pipeline run`: of all that Dagster says, that a step waits for its pool."""

import logging

import dagster as dg

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.settings import is_switched_on

WAITING_LOGGER = "waiting"
# What Dagster says once when another run has the place in a pool (docs: limiting concurrency).
BLOCKED = "Step blocked by limit for pool "

logger = logging.getLogger("ft_pipeline.progress")


class _Waits(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _, found, rest = record.getMessage().partition(BLOCKED)
        if not found:
            return
        pool = rest.split()[0]
        owner = _name_owner(pool)
        if is_switched_on("FT_NO_WAIT"):  # raised out of the run, which fails with it
            raise PipelineError(
                f"the {pool} is in use by {owner}, and --no-wait is set. Try again when it has "
                "ended, or run without it to wait."
            )
        logger.info("waiting: %s is using the %s", owner, pool)


def _name_owner(pool: str) -> str:
    with dg.DagsterInstance.get() as instance:
        slots = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    owners = [f"run {slot.run_id[:8]} ({slot.step_key})" for slot in slots]
    return " and ".join(owners) or "another run"


@dg.logger
def waiting_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Say that this run waits, and nothing else; the rest is in the UI."""
    quiet = logging.Logger("ft_pipeline.waiting", logging.DEBUG)
    quiet.addHandler(_Waits())
    return quiet
