"""Room `sources`: what upstream has (`<source>_upstream`) and its files unchanged (`raw_<source>`).

An artifact of `raw_trivia` holds the downloaded files as they came, for example `trivia.csv`, and
`meta/source.json` with revision, licence, sizes and the time of fetching.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ft_pipeline.artifacts import META, Artifact
from ft_pipeline.assets.build import asset_key, define, spec
from ft_pipeline.chain import Chain
from ft_pipeline.checks import Check, Verdict
from ft_pipeline.errors import PipelineError
from ft_pipeline.evaluation.report import markdown_cell
from ft_pipeline.examples.parse import NEEDED_COLUMNS
from ft_pipeline.examples.rows import Malformed, Row, read_rows
from ft_pipeline.sources.upstream import fetch, read_revision, resolve_revision
from ft_pipeline.store import Draft

SOURCE_FILE = "meta/source.json"


# dg.multi_observable_source_asset is marked beta in Dagster 1.13; its warning would greet everyone
# at every load. Drop this when it is stable.
warnings.filterwarnings("ignore", message=".*multi_observable_source_asset.*")


def define_sources(chain: Chain) -> list[dg.AssetsDefinition]:
    """Define upstream and raw asset of each source that a chain reads."""
    return [
        definition
        for source in chain.recipe.sources
        for definition in (_define_upstream(chain, source), _define_raw(chain, source))
    ]


def _upstream_key(chain: Chain, source: str) -> dg.AssetKey:
    raw = asset_key(chain, f"raw_{source}").path[-1]
    return dg.AssetKey(raw.removeprefix("raw_") + "_upstream")


def _define_upstream(chain: Chain, source: str) -> dg.AssetsDefinition:
    declared = chain.sources[source]

    upstream_spec = dg.AssetSpec(
        _upstream_key(chain, source),
        group_name="sources",
        description=f"What upstream has. {declared.description} Observing asks for the newest "
        "revision (Kaggle version, hub commit, or hash of local files) and downloads nothing.",
        tags={"recipe": "shared"},
    )

    @dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]
        name=upstream_spec.key.path[-1], specs=[upstream_spec]
    )
    def observe(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        try:
            revision = _newest_revision(chain, source)
        except PipelineError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        yield dg.ObserveResult(
            asset_key=upstream_spec.key,
            data_version=dg.DataVersion(revision),
            metadata={"revision": revision},
        )

    return observe


def _newest_revision(chain: Chain, source: str) -> str:
    declared, project = chain.sources[source], chain.project
    if chain.recipe.use_samples:
        found = read_revision(source, declared, project.root, project.store, use_sample=True)
        return str(found)
    return resolve_revision(source, declared, project.root, project.store)


def _define_raw(chain: Chain, source: str) -> dg.AssetsDefinition:
    name = f"raw_{source}"
    declared = chain.sources[source]
    origin = declared.sample if chain.recipe.use_samples else declared.kind
    described = spec(
        chain,
        name,
        description=f"{declared.description} The files of `{source}`, unchanged, from {origin}.",
        kinds={"file" if chain.recipe.use_samples else declared.kind.replace("_", "")},
    ).replace_attributes(deps=[_upstream_key(chain, source)])
    given = next(i for i in chain.recipe.examples.inputs if i.source == source)
    needed = (*NEEDED_COLUMNS[given.parser], *declared.identity)

    def work(context: dg.AssetExecutionContext, drafts: Mapping[str, Draft]) -> None:
        _fetch(chain, source, drafts[name], needed)

    def prepare() -> None:
        project = chain.project
        sample = chain.recipe.use_samples
        if read_revision(source, declared, project.root, project.store, sample) is None:
            resolve_revision(source, declared, project.root, project.store)

    checks = [
        Check(
            "is_not_empty",
            "The source has at least one row.",
            _is_not_empty,
        ),
        Check(
            "columns_are_present",
            f"Every file has the columns that the recipe's parser needs: {', '.join(needed)}.",
            _columns_are_present,
        ),
    ]
    return define(chain, {name: described}, {name: checks}, work, prepare)


def _fetch(chain: Chain, source: str, draft: Draft, needed: tuple[str, ...]) -> None:
    declared = chain.sources[source]
    revision = str(draft.ingredients.settings["revision"])
    fetch(source, declared, revision, chain.project.root, draft.path, chain.recipe.use_samples)
    fetched = draft.preview().content
    rows = list(read_rows(fetched, source, declared.identity, needed))
    usable = [row for row in rows if isinstance(row, Row)]
    facts: dict[str, Any] = {
        "source": source,
        "revision": revision,
        "licence": declared.licence,
        "rows": len(rows),
        "malformed_rows": sum(isinstance(row, Malformed) for row in rows),
        "columns": sorted({column for row in usable for column in row.values}),
        "needed_columns": list(needed),
        "bytes": {name: path.stat().st_size for name, path in fetched.items()},
        "fetched_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(facts, indent=1)
    (draft.path / META / "source.json").write_text(text + "\n", encoding="utf-8")
    columns = {column: "string" for column in facts["columns"]}
    draft.metadata.update(
        {
            "dagster/row_count": len(rows),
            "dagster/column_schema": {"columns": columns},
            "revision": revision,
            "licence": declared.licence,
            "fetched_at": facts["fetched_at"],
            "preview": {"markdown": preview_table([row.values for row in usable[:3]])},
        }
    )


def _is_not_empty(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    rows = artifact.read_json(SOURCE_FILE)["rows"]
    return Verdict(rows > 0, f"{rows} rows", {"rows": rows})


def _columns_are_present(artifact: Artifact, inputs: Mapping[str, Artifact]) -> Verdict:
    facts = artifact.read_json(SOURCE_FILE)
    missing = sorted(set(facts["needed_columns"]) - set(facts["columns"]))
    message = f"missing: {', '.join(missing)}" if missing else f"all of {facts['needed_columns']}"
    return Verdict(not missing, message)


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
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return markdown_cell(text if len(text) <= width else text[: width - 1] + "…")
