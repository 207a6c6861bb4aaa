"""The executor: Dagster's in-process one, after marking runs of dead processes as failed.

For Dagster, a killed run (signal 9) stays STARTED, and `tag_concurrency_limits` then blocks the
recipe's next run. So every run holds a file lock, which the kernel frees when the process dies; the
next run to start marks runs with a free lock as failed.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from ft_pipeline.base.locks import hold_mark, try_lock
from ft_pipeline.base.project import find_project
from ft_pipeline.store.store import Store

LOCK_PREFIX = "run."

logger = logging.getLogger(__name__)


class WatchedExecutor(dg.Executor):
    """Dagster's in-process executor, holding the run's lock while it works."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> Any:
        return self._inner.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        with guard_run(plan_context.instance, plan_context.run_id):
            yield from self._inner.execute(plan_context, execution_plan)


def build_executor() -> dg.ExecutorDefinition:
    """Return the executor of this project."""
    in_process = dg.in_process_executor

    @dg.executor(  # type: ignore[untyped-decorator,call-overload]
        name="in_process", config_schema=in_process.config_schema
    )
    def watched_in_process(init_context: dg.InitExecutorContext) -> dg.Executor:
        create = in_process.executor_creation_fn
        assert create is not None  # Dagster's own executor has one
        return WatchedExecutor(create(init_context))

    return watched_in_process


@contextlib.contextmanager
def guard_run(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Mark dead runs of this instance as failed, then hold this run's lock next to its storage."""
    end_dead_runs(instance)
    locks = _find_locks(instance)
    locks.mkdir(parents=True, exist_ok=True)
    store = Store(find_project().store)
    with store.running(run_id), hold_mark(locks / f"{LOCK_PREFIX}{run_id}"):
        yield


def _find_locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / ".dagster" / "run_locks"


def end_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark each run as failed whose lock nobody holds."""
    for file in _find_locks(instance).glob(f"{LOCK_PREFIX}*"):
        with try_lock(file) as free:
            if free and file.exists():  # else its run ended between listing and locking
                _end_dead_run(instance, file.name.removeprefix(LOCK_PREFIX), file)


def _end_dead_run(instance: dg.DagsterInstance, run_id: str, file: Path) -> None:
    run = instance.get_run_by_id(run_id)
    if run is None:
        return  # another instance's run; it clears its own
    if not run.is_finished:
        instance.report_run_failed(run, "Its process died without reporting anything (killed?).")
        logger.warning("marked run %s as failed: its process was killed", run_id)
    file.unlink(missing_ok=True)
