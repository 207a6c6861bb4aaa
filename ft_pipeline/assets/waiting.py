"""The logger of `ft-pipeline run`: of all that Dagster says, that a step waits for its pool."""

import logging

import dagster as dg

WAITING_LOGGER = "waiting"
# What Dagster says once when another run has the place in a pool (docs: limiting concurrency).
BLOCKED = "Step blocked by limit for pool "

logger = logging.getLogger("ft_pipeline.progress")


class _Waits(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _, found, pool = record.getMessage().partition(BLOCKED)
        if found:
            logger.info("waiting: another run is using the %s", pool.split()[0])


@dg.logger
def waiting_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Say that this run waits, and nothing else; the rest is in the UI."""
    quiet = logging.Logger("ft_pipeline.waiting", logging.DEBUG)
    quiet.addHandler(_Waits())
    return quiet
