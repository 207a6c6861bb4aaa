"""How every asset is declared and materialized: ask the store; on a miss, build, check, publish."""

import base64
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

import dagster as dg
from pydantic import Field

from ft_pipeline.base.activity import activity
from ft_pipeline.base.durations import format_seconds
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import DEFAULT_RECIPE
from ft_pipeline.base.settings import is_switched_on
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup, Request
from ft_pipeline.graph.pins import Pins
from ft_pipeline.lineage.receipt import write_receipt, write_recipe
from ft_pipeline.lineage.summary import make_tags, summarize
from ft_pipeline.process.device_lock import hold_device
from ft_pipeline.process.launch import run_worker
from ft_pipeline.process.tasks import WorkerTask
from ft_pipeline.store.artifacts import Artifact, CheckResult
from ft_pipeline.store.checks import Check
from ft_pipeline.store.store import Draft

LARGEST_PICTURE = 100_000
# What Dagster tags a run with that repeats only what failed in another.
RESUME_TAGS = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")

# The checks of every defined asset by key: what reads an artifact sees that they were made.
CHECKS: dict[str, tuple[Check, ...]] = {}

logger = logging.getLogger("ft_pipeline.progress")


class BuildConfig(dg.Config):
    """Run configuration of every asset."""

    force: list[str] = Field(
        default=[],
        description="Assets to rebuild even if they are up to date, for example [finetuned_model].",
    )


def asset_key(chain: Chain, name: str) -> dg.AssetKey:
    """Return the Dagster key of an asset of a chain."""
    return dg.AssetKey(chain.asset(name).split("/"))


def spec(
    chain: Chain, name: str, description: str, kinds: set[str], room: str | None = None
) -> dg.AssetSpec:
    """Declare one asset: key, inputs, group, kinds, description, code version, tags."""
    key = asset_key(chain, name)
    group = room or chain.rule(name).room
    prefixed = len(key.path) > 1
    return dg.AssetSpec(
        key=key,
        deps=[asset_key(chain, given) for given in chain.inputs(name)],
        description=description,
        group_name=f"{chain.name}_{group}" if prefixed else group,
        kinds=kinds,
        code_version=chain.code_version(name),
        tags={"recipe": chain.name if prefixed or chain.name == DEFAULT_RECIPE else "shared"},
    )


def check_specs(chain: Chain, name: str, checks: Sequence[Check]) -> list[dg.AssetCheckSpec]:
    """Declare the checks of one asset."""
    key = asset_key(chain, name)
    return [
        dg.AssetCheckSpec(c.name, asset=key, description=c.description, blocking=c.blocking)
        for c in checks
    ]


def define(
    chain: Chain,
    specs: Mapping[str, dg.AssetSpec],
    checks: Mapping[str, Sequence[Check]],
    work: Callable[[dg.AssetExecutionContext, Mapping[str, Draft]], None],
    prepare: Callable[[dg.AssetExecutionContext], object] | None = None,
    is_wanted: Callable[[dg.AssetExecutionContext, Request], bool] | None = None,
) -> dg.AssetsDefinition:
    """Define one or more assets that one piece of work builds.

    `work` receives the drafts of the assets missing from the store and fills their folders;
    `prepare` runs before the inputs are looked up. If `is_wanted` rejects a missing asset, the run
    ends there: nothing is built, and everything downstream is skipped.
    """

    CHECKS.update({chain.asset(name): tuple(checks.get(name, ())) for name in specs})

    @dg.multi_asset(
        name="__".join(asset_key(chain, next(iter(specs))).path),
        specs=list(specs.values()),
        check_specs=[s for name in specs for s in check_specs(chain, name, checks.get(name, ()))],
        # Dagster lets only those that can be subsetted end without all their outputs.
        can_subset=len(specs) > 1 or is_wanted is not None,
    )
    def materialize(
        context: dg.AssetExecutionContext, config: BuildConfig
    ) -> Iterator[dg.MaterializeResult[Any]]:
        selected = [name for name, s in specs.items() if s.key in context.selected_asset_keys]
        try:
            if prepare is not None:
                prepare(context)
            lookup = Lookup(chain, _open_pins(context, chain))
            yield from _materialize(
                context, lookup, selected, checks, work, config.force, is_wanted
            )
        except PipelineError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error

    return materialize


def run_task(
    context: dg.AssetExecutionContext,
    chain: Chain,
    drafts: Mapping[str, Draft],
    task: WorkerTask,
    beside: contextlib.AbstractContextManager[None] | None = None,
) -> dict[str, Any]:
    """Run a worker task that fills drafts; its log goes into the store.

    A task that needs the device waits for it here, before anything heavy starts; the seconds of the
    drafts count from then on. The context `beside` is active while the worker runs.
    """

    def say(what: str) -> None:
        context.log.info(what)  # an event of the run
        logger.info(what)  # what `ft-pipeline run` shows

    with contextlib.ExitStack() as stack:
        device = None
        if task.needs_device:
            device = stack.enter_context(hold_device(task.name, say))
            for draft in drafts.values():
                draft.started = monotonic()
        if beside is not None:
            stack.enter_context(beside)
        return run_worker(context, task, chain.project.store / "runs", device)


def fill_from_report(draft: Draft, report: Mapping[str, Any]) -> None:
    """Copy metadata and resolved choices from a worker's report."""
    draft.metadata.update(report["metadata"])
    draft.resolved.update(report["resolved"])


def _materialize(
    context: dg.AssetExecutionContext,
    lookup: Lookup,
    names: Sequence[str],
    checks: Mapping[str, Sequence[Check]],
    work: Callable[[dg.AssetExecutionContext, Mapping[str, Draft]], None],
    force: Sequence[str],
    is_wanted: Callable[[dg.AssetExecutionContext, Request], bool] | None,
) -> Iterator[dg.MaterializeResult[Any]]:
    store = lookup.store
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        drafts: dict[str, Draft] = {}
        for name in names:
            start = monotonic()
            lookup = _check_inputs(lookup, name)
            request = lookup.state(name).require_request()
            forced = name in force
            found = None if forced else _use(lookup, name)
            if found is None:
                stack.enter_context(store.lock(request.asset, request.fingerprint))
                if not forced and store.find(request.asset, request.fingerprint) is not None:
                    lookup = lookup.again()  # another process has built it meanwhile
                    found = _use(lookup, name)
            if found is not None:
                artifact = _recheck(lookup, name, found, checks.get(name, ()))
                store.push_pending(artifact)
                _say_done(lookup, name, artifact, "reused", monotonic() - start)
                failed += _list_failed(artifact)
                yield _result(lookup, name, artifact, reused=True)
                continue
            if is_wanted is not None and not forced and not is_wanted(context, request):
                continue
            _refuse_training(lookup, name, request)
            inputs = lookup.pull_inputs(name)
            if forced:  # from the start, not from where another try ended
                store.remove_checkpoints(request.asset, request.fingerprint)
            drafts[name] = stack.enter_context(
                store.draft(request.asset, request.ingredients, inputs)
            )
            drafts[name].forced = forced
        if drafts:
            built = ", ".join(draft.asset for draft in drafts.values())
            with activity(f"{built}: building", heading=True):
                work(context, drafts)
        for name, draft in drafts.items():
            artifact = _publish(lookup, name, draft, checks.get(name, ()), context.run_id)
            _say_done(lookup, name, artifact, "built", artifact.manifest.seconds)
            failed += _list_failed(artifact)
            yield _result(lookup, name, artifact, reused=False)
    if failed:  # Dagster's own error would name the check without what it says
        raise PipelineError("\n".join(failed))


def _say_done(lookup: Lookup, name: str, artifact: Artifact, how: str, seconds: float) -> None:
    figure = lookup.chain.key_figure(name, artifact.manifest.metadata)
    took = f" in {format_seconds(seconds)}" if how == "built" or seconds >= 1 else ""
    logger.info("%s: %s%s: %s", artifact.manifest.asset, how, took, figure)


def _list_failed(artifact: Artifact) -> list[str]:
    return [
        f"{artifact.manifest.asset}: blocking check {check.name} failed: {check.message}"
        for check in artifact.failed_checks
    ]


def _open_pins(context: dg.AssetExecutionContext, chain: Chain) -> Pins:
    """Return the revisions that this run, or the one it continues, saw first."""
    folder = chain.project.store / "pins"
    pins, continued = Pins(folder / context.run_id), _continued_run(context)
    if continued is not None:
        pins.take_over(folder / continued, _list_done(context.instance, continued))
    return pins


def _continued_run(context: dg.AssetExecutionContext) -> str | None:
    """Return the run whose failed steps this one repeats ("re-execute from failure"), if any."""
    run = context.run
    continues = any(run.tags.get(tag) == "true" for tag in RESUME_TAGS)
    return run.parent_run_id if continues else None


def _list_done(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """Return the assets that a run materialized."""
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    return {
        "/".join(key.path)
        for entry in instance.all_logs(run_id, of_type=made)
        if entry.dagster_event and (key := entry.dagster_event.asset_key)
    }


def _use(lookup: Lookup, name: str) -> Artifact | None:
    """Return the stored artifact that was asked for and note its use; None if there is none.

    Raises DamagedArtifact or RemoteError with the remedy.
    """
    state = lookup.state(name)
    if state.artifact is None and state.error is None:
        return None
    found = lookup.pull(name)
    return found if lookup.store.mark_used(found) else None


def _refuse_training(lookup: Lookup, name: str, request: Request) -> None:
    if lookup.chain.rule(name).is_trained and is_switched_on("FT_NO_TRAIN"):
        raise PipelineError(
            f"{request.asset}: FT_NO_TRAIN (--no-train) is set, and neither the store nor a "
            f"remote (FT_REMOTE) has artifact {request.fingerprint}. Train it on another machine "
            "with the same FT_REMOTE, or run without --no-train."
        )


def _publish(
    lookup: Lookup, name: str, draft: Draft, checks: Sequence[Check], run_id: str
) -> Artifact:
    if draft.inputs:  # what comes from outside is not made by a recipe
        write_recipe(draft.path, lookup.chain.name, lookup.chain.recipe)
    preview = draft.preview()
    if lookup.chain.rule(name).kind == "model":
        write_receipt(draft, preview.manifest, lookup.store, run_id)
    results = [check.run(preview, draft.inputs) for check in checks]
    return lookup.store.publish(draft, results, run_id, replace=draft.forced)


def _recheck(lookup: Lookup, name: str, artifact: Artifact, checks: Sequence[Check]) -> Artifact:
    """Keep stored check results; compute only checks with a new version."""
    kept = [check.stored_result(artifact) for check in checks]
    inputs: Mapping[str, Artifact] = {}
    if None in kept:
        artifact, inputs = lookup.pull(name), lookup.pull_inputs(name)
    results = [old or c.run(artifact, inputs) for old, c in zip(kept, checks, strict=True)]
    if results == artifact.manifest.checks:
        return artifact
    return lookup.store.replace_checks(artifact, results)


def _check_inputs(lookup: Lookup, name: str) -> Lookup:
    """Run the checks that an asset's inputs lack; return a look-up that sees the results.

    A new check, or a new version of one, thus also applies to stored artifacts.
    """
    unchecked = False
    for given, artifact in lookup.state(name).require_request().inputs.items():
        checks = CHECKS.get(lookup.chain.asset(given), ())
        if any(check.stored_result(artifact) is None for check in checks):
            _recheck(lookup, given, artifact, checks)
            unchecked = True
        unchecked |= not lookup.store.mark_used(artifact)  # `gc` was here: named as missing
    return lookup.again() if unchecked else lookup


def _result(
    lookup: Lookup, name: str, artifact: Artifact, reused: bool
) -> dg.MaterializeResult[Any]:
    manifest, chain = artifact.manifest, lookup.chain
    tags = {"fingerprint": manifest.fingerprint}
    metadata: dict[str, Any] = {}  # the page shows it in this order
    if chain.rule(name).kind == "model":
        metadata["lineage"] = dg.MetadataValue.md(summarize(chain, artifact))
        tags |= make_tags(chain, artifact)
    metadata |= {
        key: _metadata_value(artifact, value)
        for key, value in {**manifest.metadata, **manifest.resolved}.items()
    }
    metadata |= {
        "path": dg.MetadataValue.path(str(artifact.path)),
        "size_mb": round(artifact.bytes / 1e6, 3),
        "seconds": 0.0 if reused else manifest.seconds,
        "reused": reused,
        "fingerprint": manifest.fingerprint,
        "built_at": manifest.created_at,
    }
    if reused:
        pulled = (manifest.asset, manifest.fingerprint) in lookup.store.pulled
        where = "the remote had one" if pulled else "the store has an intact artifact"
        metadata["why_reused"] = f"{where} with this fingerprint"
        metadata["seconds_saved"] = manifest.seconds
    return dg.MaterializeResult(
        asset_key=asset_key(chain, name),
        metadata=metadata,
        data_version=dg.DataVersion(manifest.data_version),
        check_results=[_check_result(chain, name, result) for result in manifest.checks],
        tags=tags,
    )


def _check_result(chain: Chain, name: str, result: CheckResult) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=result.name,
        asset_key=asset_key(chain, name),
        passed=result.passed,
        description=result.message,
        metadata=result.metadata,
        severity=dg.AssetCheckSeverity.ERROR if result.blocking else dg.AssetCheckSeverity.WARN,
    )


def _metadata_value(artifact: Artifact, value: Any) -> Any:
    """Turn the plain metadata of a manifest into Dagster's.

    `{"markdown": text}`, `{"picture": file}`, `{"columns": {name: type}}` and `{"lineage": {column:
    [[asset, column], …]}}` become the matching metadata types.
    """
    if not isinstance(value, dict):
        return "none" if value is None else value
    if "markdown" in value:
        return dg.MetadataValue.md(value["markdown"])
    if "picture" in value:
        content = (artifact.path / value["picture"]).read_bytes()
        if len(content) > LARGEST_PICTURE:
            return dg.MetadataValue.path(str(artifact.path / value["picture"]))
        encoded = base64.b64encode(content).decode("ascii")
        return dg.MetadataValue.md(f"![{value['picture']}](data:image/png;base64,{encoded})")
    if "columns" in value:
        columns = [dg.TableColumn(name, type=kind) for name, kind in value["columns"].items()]
        return dg.MetadataValue.table_schema(dg.TableSchema(columns=columns))
    if "lineage" in value:
        return dg.MetadataValue.column_lineage(
            dg.TableColumnLineage(
                {
                    column: [
                        dg.TableColumnDep(dg.AssetKey(asset.split("/")), source)
                        for asset, source in sources
                    ]
                    for column, sources in value["lineage"].items()
                }
            )
        )
    return dg.MetadataValue.json(value)
