"""Room `sources`: what upstream has (`<source>_upstream`) and its unchanged files (`raw_<source>`).

An artifact of `raw_trivia` holds the downloaded files as they are, for example `trivia.csv`, and
`meta/source.json` with revision, licence, sizes and download time.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from ft_pipeline.assets import tags
from ft_pipeline.assets.build import asset_key, define, spec
from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.base.hashing import hash_json
from ft_pipeline.base.json_files import write_json
from ft_pipeline.config.sources import AnySource
from ft_pipeline.evaluation.report import markdown_cell
from ft_pipeline.examples.read.columns import find_column
from ft_pipeline.examples.read.formats import read_blocks, to_list
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.revisions import read_revision, resolve_revision
from ft_pipeline.sources.upstream import describe_reading, fetch
from ft_pipeline.store.artifact_files import SOURCE_FILE
from ft_pipeline.store.artifacts import Artifact
from ft_pipeline.store.checks import Check, Verdict
from ft_pipeline.store.store import Draft

# dg.multi_observable_source_asset is marked beta in Dagster 1.13; its warning would greet everyone
# at every load. Drop this when it is stable.
warnings.filterwarnings("ignore", message=".*multi_observable_source_asset.*")


def define_sources(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define the upstream asset and the raw asset of each source that a chain reads."""
    return [
        definition
        for source in chain.recipe.sources
        for definition in (
            _define_upstream(chain, source, upstream_key(chain, source), chain.recipe.use_samples),
            _define_raw(chain, source),
        )
    ]


def define_unread_sources(chains: Sequence[Chain]) -> list[dg.AssetsDefinition]:
    """Define the upstream asset of each declared source that no recipe reads yet.

    Observing it shows whether its address and your access are right. It keeps its key when a recipe
    later reads it without samples.
    """
    first = chains[0]
    read = {source for chain in chains for source in chain.recipe.sources}
    ending = "_full_upstream" if first.default.use_samples else "_upstream"
    return [
        _define_upstream(first, source, dg.AssetKey(source + ending), use_sample=False)
        for source in first.sources
        if source not in read
    ]


def upstream_key(chain: Chain, source: str) -> dg.AssetKey:
    """Return the key of the upstream asset that a source's raw files come from."""
    raw = asset_key(chain, f"raw_{source}").path[-1]
    return dg.AssetKey(raw.removeprefix("raw_") + "_upstream")


def observe(key: dg.AssetKey, revision: str, failure: str | None = None) -> dg.AssetObservation:
    """Return the event that upstream has this revision, or had it, if it did not answer."""
    return dg.AssetObservation(
        asset_key=key,
        tags={"dagster/data_version": revision},
        metadata={"revision": revision, **({"failure": failure} if failure else {})},
    )


def _define_upstream(
    chain: Chain, source: str, key: dg.AssetKey, use_sample: bool
) -> dg.AssetsDefinition:
    declared, project = chain.sources[source], chain.project

    upstream_spec = dg.AssetSpec(
        key,
        group_name="sources",
        description=f"What upstream has. {declared.description} Observing looks up the newest "
        "revision (Kaggle version, hub commit, or hash of local files) and downloads nothing.",
        tags={"recipe": "shared"},
    )

    @dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]
        name=key.path[-1], specs=[upstream_spec]
    )
    def look(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        try:
            if use_sample:
                revision = str(read_revision(project, source, declared, use_sample=True))
            else:
                revision = resolve_revision(project, source, declared)
        except PipelineError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        yield dg.ObserveResult(
            asset_key=key,
            data_version=dg.DataVersion(revision),
            metadata={"revision": revision},
        )

    return look


def _define_raw(chain: Chain, source: str) -> dg.AssetsDefinition:
    name = f"raw_{source}"
    declared = chain.sources[source]
    origin = declared.sample if chain.recipe.use_samples else declared.kind
    described = spec(
        chain,
        name,
        description=f"{declared.description} The files of `{source}`, unchanged, from {origin}.",
        kinds={"file" if chain.recipe.use_samples else declared.kind.replace("_", "")},
    ).replace_attributes(deps=[upstream_key(chain, source)])

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        _fetch(chain, source, drafts[name])

    def prepare(context: dg.AssetExecutionContext) -> None:
        project = chain.project
        sample = chain.recipe.use_samples
        known = read_revision(project, source, declared, sample)
        asked = context.run.tags.get(tags.ASK_UPSTREAM) == "yes" and not sample
        if known is not None and not asked:
            return
        try:
            revision = resolve_revision(project, source, declared)
        except PipelineError as error:
            if known is None:
                raise
            context.log.warning(f"upstream could not be checked, keeping revision {known}: {error}")
            return
        context.log_event(observe(upstream_key(chain, source), revision))

    reading = hash_json(describe_reading(declared))

    def is_not_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        facts = _facts(source, declared, artifact)
        message = f"{facts['rows']} rows, {facts['broken_rows']} of them broken"
        passed = facts["rows"] > facts["broken_rows"]
        if not passed:
            message = (
                f"no row of {', '.join(artifact.content)} can be read: {message}. Check the file, "
                f"and the `format` of {source} in sources.yaml (docs/data_formats.md)"
            )
        return Verdict(passed, message, {"rows": facts["rows"]})

    def identity_is_present(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
        missing = _facts(source, declared, artifact)["missing_identity"]
        message = " ".join(missing) or "all there"
        return Verdict(not missing, message)

    named = ", ".join(declared.identity) or "all columns"
    checks = [
        Check(
            "is_not_empty",
            "The source has at least one readable row.",
            is_not_empty,
            version=f"2 {reading}",
        ),
        Check(
            "identity_columns_are_present",
            f"Every file has the columns that form the row_id: {named}.",
            identity_is_present,
            version=f"2 {reading}",
        ),
    ]
    return define(chain, {name: described}, {name: checks}, work, prepare)


def _fetch(chain: Chain, source: str, draft: Draft) -> None:
    declared = chain.sources[source]
    revision = str(draft.ingredients.settings["revision"])
    use_sample = chain.recipe.use_samples
    fetched = fetch(source, declared, revision, chain.project.root, draft.path, use_sample)
    facts = {
        "source": source,
        "revision": revision,
        "licence": fetched.licence,
        "fetched_at": fetched.fetched_at,
        "files": {name: entry.model_dump() for name, entry in fetched.files.items()},
        **_read_facts(source, declared, draft.preview().content),
    }
    write_json(draft.path / SOURCE_FILE, facts, ensure_ascii=False, default=str)
    draft.metadata.update(
        {
            "dagster/row_count": facts["rows"],
            "dagster/column_schema": {"columns": dict.fromkeys(facts["columns"], "string")},
            "revision": revision,
            "licence": fetched.licence,
            "fetched_at": fetched.fetched_at,
            "broken_rows": facts["broken_rows"],
            "preview": {"markdown": preview_table(facts["preview"])},
        }
    )


def _facts(source: str, declared: AnySource, artifact: Artifact) -> dict[str, Any]:
    """Return the facts recorded at the download; read again if the source's settings changed."""
    facts: dict[str, Any] = artifact.read_json(SOURCE_FILE)
    if facts.get("reading") == hash_json(describe_reading(declared)):
        return facts
    return _read_facts(source, declared, artifact.content)


def _read_facts(source: str, declared: AnySource, files: Mapping[str, Path]) -> dict[str, Any]:
    rows, broken = 0, 0
    columns: dict[str, None] = {}
    missing: dict[str, None] = {}
    preview: list[dict[str, Any]] = []
    for block in read_blocks(source, files, declared.format):
        rows += len(block.lines) + len(block.broken)
        broken += len(block.broken)
        names = list(block.columns)
        columns.update(dict.fromkeys(names))
        if block.lines:
            found = {n: find_column(n, names, declared.aliases) for n in declared.identity}
            missing.update(
                {
                    f"{block.file}: no column `{name}`. Found: {', '.join(names)}."
                    f"{suggest(name, tuple(names))}": None
                    for name, column in found.items()
                    if column is None
                }
            )
        if len(preview) < 3:
            shown = {name: to_list(values[:3]) for name, values in block.columns.items()}
            preview += [
                dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)
            ]
    return {
        "rows": rows,
        "broken_rows": broken,
        "columns": list(columns),
        "missing_identity": list(missing),
        "preview": preview[:3],
        "reading": hash_json(describe_reading(declared)),
    }


def preview_table(records: list[dict[str, Any]], width: int = 160) -> str:
    """Return records as a Markdown table, long values shortened."""
    if not records:
        return "(no rows)"
    columns = list(records[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for record in records:
        cells = [_shorten(record.get(column, ""), width) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shorten(value: Any, width: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return markdown_cell(text if len(text) <= width else text[: width - 1] + "…")
