"""From an artifact back to the raw rows, upstream revisions, settings, seeds and runs behind it.

It reads manifests (or a receipt) and `rows.parquet` of `prompt_completions` alone. Shortened:

    trace_artifact(chain, found) → {"tree": {"asset": "finetuned_model", "fingerprint": "8d2e…",
        "settings": {…}, "libraries": {…}, "inputs": [{"asset": "train_tokens", …}, …]},
        "rows": [{"source": "trivia", "file": "trivia.csv", "side": "train", "rows": 48}, …]}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.examples.read.database import quote
from ft_pipeline.graph.chain import Chain
from ft_pipeline.lineage.receipt import Link
from ft_pipeline.lineage.records import Found, Records
from ft_pipeline.store.artifact_files import ROWS_FILE
from ft_pipeline.store.artifacts import InputEntry

EXAMPLES_ASSET = "prompt_completions"
# The assets that hold one side only; what is made of them alone saw that side alone.
SIDE_ASSETS = {"train_set": "train", "val_set": "val"}
SIDES = frozenset({"train", "val"})
# Folders of stored examples, and the sides of them that something was made of.
ExampleFiles = Mapping[Path, frozenset[str]]


def trace_artifact(chain: Chain, found: Found) -> dict[str, Any]:
    """Return an artifact's tree back to the sources, and the number of rows by file behind it."""
    records = Records(chain.store, found.receipt)
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
    """Write the rows behind an artifact to a CSV, JSONL or Parquet file; return their number."""
    form = choose_format(target)
    examples = find_examples(Records(chain.store, found.receipt), found.link)
    if not examples:
        raise PipelineError(
            f"{found.link.asset}: no rows are behind it, or their examples are no longer stored."
        )
    query = f"COPY (FROM rows ORDER BY row_id) TO {quote(str(target))} (FORMAT {form})"
    with open_rows(examples) as con:
        return int(con.execute(query).fetchall()[0][0])


def choose_format(target: Path) -> str:
    """Return DuckDB's name of the format of a file to write. Raises PipelineError."""
    formats = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}
    if not target.parent.is_dir():
        raise PipelineError(f"{target}: there is no folder {target.parent}.")
    if target.suffix not in formats:
        raise PipelineError(f"{target}: write to a file in {', '.join(formats)}.")
    return formats[target.suffix]


def describe_tree(records: Records, link: Link) -> dict[str, Any]:
    """Return an artifact with all behind it; what stands in the tree before is only named."""
    shown: set[tuple[str, str]] = set()

    def describe(current: Link) -> dict[str, Any]:
        key = (current.asset, current.fingerprint)
        named: dict[str, Any] = {
            "asset": current.asset,
            "fingerprint": current.fingerprint,
            "data_version": current.data_version,
        }
        if key in shown:
            return named | {"repeated": True}
        shown.add(key)
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
            "inputs": [describe_input(given) for given in current.inputs.values()],
        }

    def describe_input(given: InputEntry) -> dict[str, Any]:
        found = records.find(given)
        return given.model_dump() | {"lost": True} if found is None else describe(found)

    return describe(link)


def collect_links(records: Records, link: Link) -> dict[str, Link]:
    """Return the artifact and all behind it by their names in the chain, each once.

    A second build of an asset, of which only a side was new, is named `train_set 8d2e1f07`.
    """
    links: dict[str, Link] = {}
    seen: set[tuple[str, str]] = set()

    def visit(name: str, current: Link) -> None:
        key = (current.asset, current.fingerprint)
        if key in seen:
            return
        seen.add(key)
        links[f"{name} {current.fingerprint[:8]}" if name in links else name] = current
        for given_name, given in current.inputs.items():
            found = records.find(given)
            visit(given_name, found or Link(**given.model_dump()))

    visit(link.asset.rpartition("/")[2], link)
    return links


def find_examples(records: Records, link: Link) -> ExampleFiles:
    """Return the stored examples behind an artifact, and which sides of them it saw."""
    found: dict[Path, set[str]] = {}
    seen: set[tuple[str, str, frozenset[str]]] = set()

    def visit(current: Link, sides: frozenset[str]) -> None:
        name = current.asset.rpartition("/")[2]
        sides = frozenset({SIDE_ASSETS[name]}) if name in SIDE_ASSETS else sides
        key = (current.asset, current.fingerprint, sides)
        if key in seen:
            return
        seen.add(key)
        folder = records.folder(current) if name == EXAMPLES_ASSET else None
        if folder is not None:
            found.setdefault(folder, set()).update(sides)
        for given in current.inputs.values():
            behind = records.find(given)
            if behind is not None:
                visit(behind, sides)

    visit(link, SIDES)
    return {folder: frozenset(sides) for folder, sides in found.items()}


def list_absent(records: Records, link: Link) -> list[str]:
    """Return the builds of examples behind an artifact whose rows are not in this store."""
    return [
        f"{behind.asset} {behind.fingerprint}"
        for name, behind in collect_links(records, link).items()
        if name.split()[0] == EXAMPLES_ASSET and records.folder(behind) is None
    ]


def open_rows(examples: ExampleFiles) -> duckdb.DuckDBPyConnection:
    """Return a database whose view `rows` are the rows of examples, each once."""
    con = duckdb.connect()
    con.execute(f"CREATE VIEW rows AS {select_rows(examples)}")
    return con


def select_rows(examples: ExampleFiles, columns: str = "row_id, source, file, line, side") -> str:
    """Return the query of the rows that something saw, each once a side.

    Two builds may have read a row at two lines of its file; the newer of equal ones is not known.
    """
    parts = []
    for folder, sides in sorted(examples.items()):
        file = quote(str(folder / ROWS_FILE))
        where = "" if sides == SIDES else f" WHERE side = '{next(iter(sides))}'"
        parts.append(f"SELECT {columns} FROM read_parquet({file}){where}")
    if len(parts) == 1:
        return parts[0]
    return f"SELECT DISTINCT ON (row_id, side) * FROM ({' UNION ALL '.join(parts)})"
