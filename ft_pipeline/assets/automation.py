"""Automatic runs: a sensor for each source, a schedule and two jobs for each recipe.

observe_trivia           looks for new data; requests refresh_quiz
refresh_quiz             checks upstream, and rebuilds what changed in the whole chain
evaluate_quiz            runs only the evaluations
refresh_quiz_schedule    starts refresh_quiz; from `automation.schedule`
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from ft_pipeline.assets import tags
from ft_pipeline.assets.build import asset_key
from ft_pipeline.assets.executor import end_dead_runs
from ft_pipeline.assets.sensor_state import (
    Reader,
    SourceWatch,
    decide,
    name_request,
    note_failure,
    parse_watch,
)
from ft_pipeline.assets.sources import observe, upstream_key
from ft_pipeline.base.durations import to_seconds
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.graph.revisions import resolve_revision
from ft_pipeline.graph.settings_read import raw_of
from ft_pipeline.sources.upstream import is_local, read_revision

LOCAL_SECONDS = 30  # between two looks at files of this machine, dropped ones included
NETWORK_SECONDS = 600
# Dagster gives a sensor 60 s; the reason why upstream does not answer should still be told.
LONGEST_LOOK = 45.0


def refresh_name(recipe: str) -> str:
    """Return the name of the job that builds a recipe's whole chain."""
    return f"refresh_{recipe}"


def define_refresh(chain: Chain) -> Any:
    """Define the job that builds a recipe's whole chain."""
    return dg.define_asset_job(
        refresh_name(chain.name),
        selection=dg.AssetSelection.assets(*(asset_key(chain, name) for name in chain.names)),
        description="Checks upstream for newer data and rebuilds what changed in recipe "
        f"{chain.name}: {chain.recipe.description}",
        tags={tags.RECIPE: chain.name, tags.ASK_UPSTREAM: "yes"},
    )


def define_evaluate(chain: Chain) -> Any:
    """Define the job that scores what the store has."""
    scored = [name for name in chain.names if chain.rule(name).room == "evaluation"]
    return dg.define_asset_job(
        f"evaluate_{chain.name}",
        selection=dg.AssetSelection.assets(*(asset_key(chain, name) for name in scored)),
        description=f"Scores the current models of recipe {chain.name}; trains nothing. If new "
        f"data is waiting, run {refresh_name(chain.name)} first to build them.",
        tags={tags.RECIPE: chain.name},
    )


def define_schedule(chain: Chain) -> list[dg.ScheduleDefinition]:
    """Define a recipe's schedule, if it has one; it is on unless the recipe is paused."""
    settings = chain.recipe.automation
    if settings.schedule is None:
        return []
    return [
        dg.ScheduleDefinition(
            name=f"{refresh_name(chain.name)}_schedule",
            job_name=refresh_name(chain.name),
            cron_schedule=settings.schedule,
            execution_timezone=settings.timezone,
            default_status=(
                dg.DefaultScheduleStatus.STOPPED
                if settings.paused
                else dg.DefaultScheduleStatus.RUNNING
            ),
            tags={tags.STARTED_BY: tags.SCHEDULE, **tags.BEGUN_AGAIN},
            should_execute=_clear_way,
            description=f"Checks upstream and rebuilds what changed in recipe {chain.name}, at "
            f"`{settings.schedule}` ({settings.timezone}).",
        )
    ]


def _clear_way(context: dg.ScheduleEvaluationContext) -> bool:
    """End runs that a killed daemon left, which would hold up the scheduled run."""
    end_dead_runs(context.instance)
    return True


def define_sensors(
    chains: Sequence[Chain], refresh: Mapping[str, Any]
) -> list[dg.SensorDefinition]:
    """Define one sensor for each source, sample or full, that a recipe reads."""
    readers: dict[tuple[dg.AssetKey, str], list[Chain]] = {}
    for chain in chains:
        for source in dict.fromkeys(chain.recipe.sources):
            readers.setdefault((upstream_key(chain, source), source), []).append(chain)
    return [
        _define_sensor(key, source, found, [refresh[chain.name] for chain in found])
        for (key, source), found in readers.items()
    ]


def _define_sensor(
    key: dg.AssetKey, source: str, chains: Sequence[Chain], jobs: Sequence[Any]
) -> dg.SensorDefinition:
    name = key.path[-1].removesuffix("_upstream")
    wanted = [c.name for c in chains if _runs_on_new_data(c)]
    named = ", ".join(refresh_name(c.name) for c in chains)

    @dg.sensor(
        name=f"observe_{name}",
        jobs=jobs,
        minimum_interval_seconds=min(LOCAL_SECONDS, _observe_seconds(chains[0], source)),
        default_status=(
            dg.DefaultSensorStatus.RUNNING if wanted else dg.DefaultSensorStatus.STOPPED
        ),
        description=f"Looks for new data of source {source}; a new revision starts {named} if the "
        "recipe's `automation` says so. Enabled for: " + (", ".join(wanted) or "no recipe") + ".",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        end_dead_runs(context.instance)  # one of a killed daemon would hold the next one back
        before = parse_watch(context.cursor)
        after, revision = _look(chains[0], source, before, time.time())
        if revision is None:
            reason = f"{source}: {after.failure}"
            return dg.SensorResult(skip_reason=reason, cursor=after.model_dump_json())
        readers = [
            Reader(c.name, c.recipe.automation, _find_last_run(context.instance, c.name))
            for c in chains
        ]
        first = before.revision is None
        decision = decide(_with_baseline(after, chains, source), revision, readers, time.time())
        news = first or revision != before.revision or after.failure != before.failure
        shown = f"{source}: {after.failure}; keeping the last known revision {revision}"
        return dg.SensorResult(
            run_requests=[_request(decision.watch, source, recipe) for recipe in decision.requests],
            # Where there are requests, Dagster refuses a reason.
            skip_reason=None
            if decision.requests
            else (shown if after.failure else f"{source} {revision}: {decision.reason}"),
            asset_events=[observe(key, revision, after.failure)] if news else [],
            cursor=decision.watch.model_dump_json(),
        )

    return look


def _look(
    chain: Chain, source: str, watch: SourceWatch, now: float
) -> tuple[SourceWatch, str | None]:
    """Return the current revision, asking the network when it is time to.

    None if none is known because upstream never answered; the watch then holds the reason.
    """
    declared, project = chain.sources[source], chain.project
    sample = chain.recipe.use_samples
    remote = not sample and not is_local(declared)
    if remote and now - watch.asked >= _observe_seconds(chain, source):
        watch = watch.model_copy(update={"asked": now, "failure": None})
        try:
            _resolve_in_time(lambda: resolve_revision(project, source, declared, push=False))
        except PipelineError as error:
            watch = note_failure(watch, str(error))
    try:
        # Without the remote: where that is silent, a look is not to wait for it.
        revision = read_revision(source, declared, project.root, project.store, sample)
    except PipelineError as error:  # a local file that is gone, or cannot be read
        return note_failure(watch, str(error)), watch.revision
    if not remote:
        watch = watch.model_copy(update={"failure": None})
    return watch, revision


def _resolve_in_time(resolve: Callable[[], str]) -> None:
    """Call `resolve`; raise what it raises, or PipelineError if it takes too long."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            resolve()
        except Exception as error:  # raised again below, where somebody sees it
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LONGEST_LOOK)
    if thread.is_alive():
        raise PipelineError(f"upstream did not answer within {LONGEST_LOOK:.0f} s")
    if raised:
        raise raised[0]


def _with_baseline(watch: SourceWatch, chains: Sequence[Chain], source: str) -> SourceWatch:
    """On the very first look, count the revision of the newest raw files as known."""
    if watch.revision is not None:
        return watch
    raw = chains[0].asset(raw_of(source))
    for manifest in open_store(chains[0]).manifests(raw)[:1]:
        return watch.model_copy(update={"revision": manifest.ingredients.settings.get("revision")})
    return watch


def _observe_seconds(chain: Chain, source: str) -> int:
    declared = chain.sources[source]
    if declared.observe_every is not None:
        return max(1, to_seconds(declared.observe_every))
    return LOCAL_SECONDS if chain.recipe.use_samples or is_local(declared) else NETWORK_SECONDS


def _runs_on_new_data(chain: Chain) -> bool:
    return chain.recipe.automation.on_new_data and not chain.recipe.automation.paused


def _find_last_run(instance: dg.DagsterInstance, recipe: str) -> Callable[[], float | None]:
    def find() -> float | None:
        started = {tags.STARTED_BY: tags.NEW_DATA}
        filters = dg.RunsFilter(job_name=refresh_name(recipe), tags=started)
        records = instance.get_run_records(filters, limit=1)
        return records[0].create_timestamp.timestamp() if records else None

    return find


def _request(watch: SourceWatch, source: str, recipe: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=name_request(watch, source, recipe),
        job_name=refresh_name(recipe),
        tags={
            tags.STARTED_BY: tags.NEW_DATA,
            tags.REVISION: f"{source} {watch.revision}",
            tags.ASK_UPSTREAM: "no",  # the sensor has just asked
            **tags.BEGUN_AGAIN,
        },
    )
