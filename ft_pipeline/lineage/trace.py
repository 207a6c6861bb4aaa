"""Trace an artifact back to its raw rows, upstream revisions, settings, seeds and runs.

It only reads manifests (or a receipt) and `rows.parquet` of `prompt_completions`. Shortened:

    trace_artifact(chain, found) → {"tree": {"asset": "finetuned_model", "fingerprint": "8d2e…",
        "settings": {…}, "libraries": {…}, "inputs": [{"asset": "train_tokens", …}, …]},
        "rows": [{"source": "trivia", "file": "trivia.csv", "side": "train", "rows": 48}, …]}
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read.database import quote
from ft_pipeline.graph.asset_rules import EXAMPLES
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.lineage.built_from import split_of
from ft_pipeline.lineage.receipt import Link
from ft_pipeline.lineage.records import Found, Records
from ft_pipeline.store.artifact_files import ROWS_FILE
from ft_pipeline.store.manifest_graph import Visit

SPLITS = frozenset({"train", "val"})
# Folders of stored examples, and the splits of them that something was made of.
ExampleFiles = Mapping[Path, frozenset[str]]


def trace_artifact(chain: Chain, found: Found) -> dict[str, Any]:
    """Return an artifact's tree back to the sources, and its number of rows by file."""
    records = Records(open_store(chain), found.receipt)
    rows = []
    examples = find_examples(records, found.link)
    if examples:
        with open_rows(examples) as con:
            counted = con.execute(
                "SELECT source, file, side, count(*) AS rows FROM rows GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        rows = [dict(zip(("source", "file", "side", "rows"), row, strict=True)) for row in counted]
    return {
        "path": str(found.folder),
        "tree": describe_tree(records, found.link),
        "rows": rows,
        "examples_not_here": list_absent(records, found.link),
        "software": found.receipt.software if found.receipt else {},
        "seeds": found.receipt.seeds if found.receipt else {},
    }


def export_rows(chain: Chain, found: Found, target: Path) -> int:
    """Write an artifact's rows to a CSV, JSONL or Parquet file; return their number."""
    form = choose_format(target)
    examples = find_examples(Records(open_store(chain), found.receipt), found.link)
    if not examples:
        raise PipelineError(
            f"{found.link.asset}: no rows to write; it was made from none, or their examples are "
            "no longer stored."
        )
    query = f"COPY (FROM rows ORDER BY row_id) TO {quote(str(target))} (FORMAT {form})"
    with open_rows(examples) as con:
        return int(con.execute(query).fetchall()[0][0])


def choose_format(target: Path) -> str:
    """Return DuckDB's name for the format of a file to write. Raises PipelineError."""
    formats = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}
    if not target.parent.is_dir():
        raise PipelineError(
            f"{target}: there is no folder {target.parent}. Create it, or choose another."
        )
    if target.suffix not in formats:
        raise PipelineError(f"{target}: unknown file type. Use one of {', '.join(formats)}.")
    return formats[target.suffix]


def describe_tree(records: Records, link: Link) -> dict[str, Any]:
    """Return an artifact's tree; an artifact that occurs again is only named."""
    described: dict[int, dict[str, Any]] = {}
    for visit in records.walk_behind(link):
        found = _describe_visit(visit)
        described[id(visit)] = found
        if visit.by is not None:
            described[id(visit.by)]["inputs"].append(found)
    return next(iter(described.values()))


def _describe_visit(visit: Visit[Link]) -> dict[str, Any]:
    current = visit.node
    if current is None:
        assert visit.given is not None, "what is lost was given to somebody"
        return visit.given.model_dump() | {"lost": True}
    named = current.model_dump(include={"asset", "fingerprint", "data_version"})
    if visit.again:
        return named | {"repeated": True}
    if current.ingredients is None:
        return named | {"lost": True}
    made_of = current.ingredients
    return named | {
        "created_at": current.created_at,
        "seconds": current.seconds,
        "run_id": current.run_id,
        "code_version": made_of.code_version,
        "settings": made_of.settings,
        "libraries": made_of.libraries,
        "resolved": current.resolved,
        **({"revision": current.revision} if current.revision else {}),
        "inputs": [],
    }


def collect_links(records: Records, link: Link) -> dict[str, Link]:
    """Return the artifact and everything it was made from by their names in the chain, each once.

    A second build of an asset, with only one new split, is named `train_set 8d2e1f07`.
    """
    links: dict[str, Link] = {}
    for visit in records.walk_behind(link):
        if visit.again:
            continue
        current = visit.node
        if current is None:
            assert visit.given is not None, "what is lost was given to somebody"
            current = Link(**visit.given.model_dump())
        name = visit.name
        links[f"{name} {current.fingerprint[:8]}" if name in links else name] = current
    return links


def find_examples(records: Records, link: Link) -> ExampleFiles:
    """Return the stored examples that an artifact was made from, and the splits it saw."""
    found: dict[Path, set[str]] = {}
    for split in sorted(SPLITS):
        for visit in records.walk_behind(link, partial(_can_hold, split)):
            current = visit.node
            if current is None or visit.again or current.name != EXAMPLES.name:
                continue
            folder = records.folder(current)
            if folder is not None:
                found.setdefault(folder, set()).add(split)
    return {folder: frozenset(splits) for folder, splits in found.items()}


def _can_hold(split: str, name: str) -> bool:
    """Whether an asset of this name may hold rows of a split."""
    return split_of(name) in (None, split)


def list_absent(records: Records, link: Link) -> list[str]:
    """Return an artifact's builds of examples whose rows are not in this store."""
    return [
        f"{behind.asset} {behind.fingerprint}"
        for name, behind in collect_links(records, link).items()
        if name.split()[0] == EXAMPLES.name and records.folder(behind) is None
    ]


def open_rows(examples: ExampleFiles) -> duckdb.DuckDBPyConnection:
    """Return a database whose view `rows` holds the rows of examples, each once."""
    con = duckdb.connect()
    con.execute(f"CREATE VIEW rows AS {select_rows(examples)}")
    return con


def select_rows(examples: ExampleFiles, columns: str = "row_id, source, file, line, side") -> str:
    """Return the query for the rows that something saw, each once per split.

    Two builds may have read a row at different lines of its file; which is newer is unknown.
    """
    parts = []
    for folder, splits in sorted(examples.items()):
        file = quote(str(folder / ROWS_FILE))
        where = "" if splits == SPLITS else f" WHERE side = '{next(iter(splits))}'"
        parts.append(f"SELECT {columns} FROM read_parquet({file}){where}")
    if len(parts) == 1:
        return parts[0]
    return f"SELECT DISTINCT ON (row_id, side) * FROM ({' UNION ALL '.join(parts)})"
