"""Runs a chain's job in this process on the project's Dagster instance, for `ft-pipeline run`."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_pipeline.assets import tags
from ft_pipeline.assets.sqlite_tuning import hold_databases_open
from ft_pipeline.base.console import PROJECT, show_project
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.graph.chain import Chain

if TYPE_CHECKING:
    import dagster as dg
INTERRUPTED = "DagsterExecutionInterruptedError"


class RunStopped(PipelineError):
    """The run was interrupted."""

    def __init__(self) -> None:
        super().__init__("finished assets are kept; run the same command to continue")


@dataclass(frozen=True)
class Outcome:
    """What happened to each asset (`built` or `reused`, by key) and what failed."""

    run_id: str
    seconds: float
    assets: dict[str, str]
    failures: list[str]


def execute(
    chain: Chain,
    names: Sequence[str],
    force: Sequence[str],
    run_id: str | None = None,
) -> Outcome:
    """Materialize some assets of a chain; never raises for a failed one.

    Raises RunStopped when this process is interrupted.

    The run is recorded in the Dagster instance of the project (DAGSTER_HOME, by default the
    project's root), so the UI shows it like any other.
    """
    os.environ.setdefault("DAGSTER_HOME", str(chain.project.root))
    os.chdir(chain.project.root)  # dagster.yaml keeps its state in folders relative to the root
    import dagster as dg

    from ft_pipeline.assets.build import asset_key
    from ft_pipeline.assets.executor import guard_run

    # Dagster's console logging is off; `_shown` prints what people need.
    config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = resolve_job(chain)
    forced_keys = {asset_key(chain, name) for name in force}
    config["ops"] = {
        node: {"config": {"force": list(force)}} for node in _nodes_of(job, forced_keys)
    }
    run_id = run_id or str(uuid.uuid4())
    with (
        dg.DagsterInstance.get() as instance,  # before the hold: new databases are moved
        hold_databases_open(),
        guard_run(instance, run_id),
        _stopping(),
        _shown(),
    ):
        result = job.execute_in_process(
            run_id=run_id,
            instance=instance,
            asset_selection=[asset_key(chain, name) for name in names],
            run_config=config,
            tags={tags.ASK_UPSTREAM: "no"},
            raise_on_error=False,
        )
        if any(is_interruption(event) for event in result.all_events):
            raise RunStopped
        stats = instance.get_run_stats(result.run_id)
    seconds = (stats.end_time or 0.0) - (stats.start_time or stats.end_time or 0.0)
    return Outcome(result.run_id, seconds, _outcomes(result), _failures(result))


def resolve_job(chain: Chain) -> "dg.JobDefinition":
    """Return the job of a chain, defined without the recipes that have no part in it.

    The default recipe's assets come first, as in definitions.py: shared ones are described alike.
    """
    from ft_pipeline.assets.automation import refresh_name
    from ft_pipeline.assets.jobs import build_definitions

    chains = [chain] if chain.is_default else [chain.default_chain, chain]
    return build_definitions(chains).resolve_job_def(refresh_name(chain.name))


def _nodes_of(job: "dg.JobDefinition", keys: set["dg.AssetKey"]) -> list[str]:
    """Return the op names that build the given assets."""
    nodes = job.asset_layer.asset_graph.assets_defs
    return sorted({node.op.name for node in nodes if node.keys & keys})


def _outcomes(result: "dg.ExecuteInProcessResult") -> dict[str, str]:
    found = {}
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        reused = bool(materialization.metadata["reused"].value)
        found["/".join(materialization.asset_key.path)] = "reused" if reused else "built"
    return found


def _failures(result: "dg.ExecuteInProcessResult") -> list[str]:
    """Return one message a failed step."""
    messages = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            described = data.user_failure_data.description if data.user_failure_data else None
            if described:
                messages.append(described)
            elif data.error is not None:
                messages.append(data.error.to_string())
    if not result.success and not messages:
        messages += [_read_failure(event) for event in result.all_events if event.is_job_failure]
    return messages


def _read_failure(event: "dg.DagsterEvent") -> str:
    """Return why a run failed that no step's failure explains."""
    error = event.job_failure_data.error
    return f"the run failed; the Dagster UI has its log. {error.to_string() if error else ''}"


def is_interruption(event: "dg.DagsterEvent") -> bool:
    """Whether an event reports that Ctrl-C or SIGTERM ended a step."""
    if not event.is_step_failure:
        return False
    error = event.step_failure_data.error
    return error is not None and error.cls_name == INTERRUPTED


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Raise RunStopped if an interruption arrives between two steps."""
    import dagster._core.errors as dagster_errors

    try:
        yield
    except (KeyboardInterrupt, dagster_errors.DagsterExecutionInterruptedError) as error:
        raise RunStopped from error


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Show only the project's log records on the original standard error.

    Dagster captures a step's standard error for its UI and mirrors it with `tail`, which may lag by
    a second or lose the end. So records go straight to the original stream; Dagster's capture gets
    them as well, along with whatever libraries print.
    """
    with contextlib.ExitStack() as stack:
        terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        stack.callback(terminal.close)
        stack.enter_context(_nowhere(2))
        for stream in (terminal, sys.stderr):
            handler = show_project(stream)
            stack.callback(PROJECT.removeHandler, handler)
            stack.callback(handler.end)
        yield


@contextlib.contextmanager
def _nowhere(descriptor: int) -> Iterator[None]:
    """Discard what is written to a file descriptor."""
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(nowhere, descriptor)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)
