"""From a row to everything that saw it, and from an artifact back to its rows.

Both read manifests and the Parquet files of `prompt_completions` alone, through DuckDB. Shortened:

    trace_row(chain, "5f0a…") → [{"fingerprint": "8d2e…", "current": True, "used": True,
        "place": {"source": "trivia", "file": "trivia.csv", "line": 12, "side": "train"},
        "examples": [{"example_id": "77e1…", "task": "quiz_set", "side": "train"}],
        "built_from_it": [{"asset": "train_set", "fingerprint": "91ab…"}, …]}]
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from ft_pipeline.artifacts import Artifact, Manifest
from ft_pipeline.chain import Chain
from ft_pipeline.errors import PipelineError
from ft_pipeline.examples.database import quote
from ft_pipeline.examples.outputs import EXAMPLES_FILE, REJECTED_FILE, ROWS_FILE

EXAMPLES_ASSET = "prompt_completions"
# The assets that hold one side only; what is made of them alone saw that side alone.
SIDE_ASSETS = {"train_set": "train", "val_set": "val"}


def trace_row(chain: Chain, row_id: str) -> list[dict[str, Any]]:
    """Say for each stored build of the examples what became of a row; the newest build first.

    Raises PipelineError where no build has it.
    """
    asset = chain.asset(EXAMPLES_ASSET)
    current = chain.find(EXAMPLES_ASSET)
    found = []
    for manifest in chain.store.manifests(asset):
        folder = chain.store.folder(asset, manifest.fingerprint)
        traced = _trace_in(chain, manifest, folder, row_id)
        if traced is not None:
            traced["current"] = current is not None and current.path == folder
            found.append(traced)
    if not found:
        raise PipelineError(
            f"row {row_id}: in no stored build of {asset}. A row_id has 32 hex characters; "
            "`ft-pipeline forget --match TEXT` finds rows by their text."
        )
    return found


def trace_artifact(chain: Chain, name: str) -> dict[str, Any]:
    """Return an artifact's tree back to the sources, and the number of rows by file behind it.

    Raises MissingInputs where the store does not have it as the recipe asks for it.
    """
    artifact = find_stored(chain, name)
    tree = _describe(chain, artifact.manifest)
    examples, side = _find_examples(chain, artifact.manifest)
    rows = []
    if examples is not None:
        by_file = _query_rows(
            examples, side, "SELECT source, file, side, count(*) AS rows FROM rows GROUP BY ALL"
        )
        rows = [dict(zip(("source", "file", "side", "rows"), row, strict=True)) for row in by_file]
    return {"tree": tree, "rows": rows}


def export_rows(chain: Chain, name: str, target: Path) -> int:
    """Write the rows behind an artifact to a CSV, JSONL or Parquet file; return their number."""
    formats = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}
    if target.suffix not in formats:
        raise PipelineError(f"{target}: write to a file in {', '.join(formats)}.")
    examples, side = _find_examples(chain, find_stored(chain, name).manifest)
    if examples is None:
        raise PipelineError(f"{chain.asset(name)}: is made of no rows.")
    form = formats[target.suffix]
    query = f"COPY (FROM rows ORDER BY row_id) TO {quote(str(target))} (FORMAT {form})"
    return int(_query_rows(examples, side, query)[0][0])


def find_stored(chain: Chain, name: str) -> Artifact:
    """Return the artifact that the recipe asks for. Raises PipelineError where it is not there."""
    artifact = chain.lookup(name, chain.request(name))
    if artifact is None:
        raise PipelineError(
            f"{chain.asset(name)}: not in the store as this recipe asks for it. Build it: "
            f"ft-pipeline run --recipe {chain.name} --to {name}"
        )
    return artifact


def _trace_in(chain: Chain, manifest: Manifest, folder: Path, row_id: str) -> dict[str, Any] | None:
    place = _find_place(folder, row_id)
    if place is None:
        return None
    used = "reason" not in place
    examples = _list_examples(folder, row_id) if used else []
    sides = {example["side"] for example in examples}
    return {
        "fingerprint": manifest.fingerprint,
        "created_at": manifest.created_at,
        "used": used,
        "place": place,
        "examples": examples,
        "built_from_it": list(_follow(chain, manifest, sides)) if used else [],
    }


def _find_place(folder: Path, row_id: str) -> dict[str, Any] | None:
    rows = duckdb.execute(
        f"SELECT source, file, line, side FROM read_parquet({quote(str(folder / ROWS_FILE))}) "
        "WHERE row_id = $1",
        [row_id],
    ).fetchall()
    if rows:
        return dict(zip(("source", "file", "line", "side"), rows[0], strict=True))
    with (folder / REJECTED_FILE).open(encoding="utf-8") as file:
        return next((json.loads(line) for line in file if f'"row_id":"{row_id}"' in line), None)


def _list_examples(folder: Path, row_id: str) -> list[dict[str, Any]]:
    names = ("example_id", "task", "side", "prompt")
    rows = duckdb.execute(
        f"SELECT {', '.join(names)} FROM read_parquet({quote(str(folder / EXAMPLES_FILE))}) "
        "WHERE list_contains(source_rows, $1)",
        [row_id],
    ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def _follow(chain: Chain, start: Manifest, sides: set[str]) -> Iterator[dict[str, str]]:
    """Yield the stored artifacts that were built from an artifact, as far as they saw a side."""
    reached = {(start.asset, start.fingerprint)}
    for name in chain.names:
        asset = chain.asset(name)
        if name in SIDE_ASSETS and SIDE_ASSETS[name] not in sides:
            continue
        for manifest in chain.store.manifests(asset):
            given = {(i.asset, i.fingerprint) for i in manifest.inputs.values()}
            if given & reached:
                reached.add((asset, manifest.fingerprint))
                yield {
                    "asset": asset,
                    "fingerprint": manifest.fingerprint,
                    "created_at": manifest.created_at,
                }


def _describe(chain: Chain, manifest: Manifest) -> dict[str, Any]:
    settings = manifest.ingredients.settings
    behind = []
    for given in manifest.inputs.values():
        found = chain.store.read_manifest(given.asset, given.fingerprint)
        behind.append(_describe(chain, found) if found else {"asset": given.asset, "lost": True})
    return {
        "asset": manifest.asset,
        "fingerprint": manifest.fingerprint,
        "data_version": manifest.data_version,
        "created_at": manifest.created_at,
        "run_id": manifest.run_id,
        **({"revision": settings["revision"]} if "revision" in settings else {}),
        "inputs": behind,
    }


def _find_examples(chain: Chain, manifest: Manifest) -> tuple[Path | None, str | None]:
    """Return the folder of the examples behind an artifact, and the side if it saw one alone."""
    examples: Path | None = None
    sides: set[str | None] = set()

    def visit(current: Manifest, side: str | None) -> None:
        nonlocal examples
        name = current.asset.rsplit("/", 1)[-1]
        side = SIDE_ASSETS.get(name, side)
        if name == EXAMPLES_ASSET:
            artifact = chain.store.find(current.asset, current.fingerprint)
            examples = artifact.path if artifact else None
            sides.add(side)
            return
        for given in current.inputs.values():
            found = chain.store.read_manifest(given.asset, given.fingerprint)
            if found is not None:
                visit(found, side)

    visit(manifest, None)
    return examples, next(iter(sides)) if len(sides) == 1 else None


def _query_rows(examples: Path, side: str | None, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as con:
        where = f" WHERE side = '{side}'" if side else ""
        con.execute(
            "CREATE VIEW rows AS SELECT row_id, source, file, line, side FROM "
            f"read_parquet({quote(str(examples / ROWS_FILE))}){where}"
        )
        return con.execute(query).fetchall()
