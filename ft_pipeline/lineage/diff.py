"""What differs between two artifacts: rows, settings, code, libraries, upstream revisions.

Shortened:

    compare(chain, a, b) → {"a": {"asset": "finetuned_model", "fingerprint": "8d2e…"}, "b": {…},
        "changes": [{"asset": "finetuned_model", "kind": "setting",
                     "what": "training.learning_rate", "a": 0.02, "b": 0.01}],
        "rows": {"added": {"count": 1, "by_file": [{"source": "trivia", "file": "trivia.csv",
                           "side": "train", "rows": 1}], "row_ids": ["5f0a…"],
                           "first": [{"row_id": "5f0a…", "text": "Which …"}]},
                 "removed": {…}, "moved": {…}}}

By convention, `a` is older and `b` newer: added rows are those that only b saw.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from ft_pipeline.base.settings import list_leaves
from ft_pipeline.examples.read.database import quote
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.lineage.receipt import Link
from ft_pipeline.lineage.records import Found, Records
from ft_pipeline.lineage.trace import (
    ExampleFiles,
    choose_format,
    collect_links,
    find_examples,
    list_absent,
    select_rows,
)
from ft_pipeline.store.artifact_files import EXAMPLES_FILE

FIRST = 5
INGREDIENT_NAMES = {"settings": "setting", "libraries": "library", "code_version": "code version"}
COLUMNS = "row_id, source, file, line, side, question"


def compare(chain: Chain, a: Found, b: Found, export: Path | None = None) -> dict[str, Any]:
    """Return what differs between two artifacts; `export`: a file for the changed rows.

    Raises PipelineError for a file of an unknown kind.
    """
    form = choose_format(export) if export else None
    store = open_store(chain)
    one, two = Records(store, a.receipt), Records(store, b.receipt)
    links = collect_links(one, a.link), collect_links(two, b.link)
    examples = find_examples(one, a.link), find_examples(two, b.link)
    absent = list_absent(one, a.link) + list_absent(two, b.link)
    compared: dict[str, Any] = {
        "a": _describe(a.link),
        "b": _describe(b.link),
        "changes": list(_compare_links(*links)),
        "rows": _compare_rows(*examples, export, form) if all(examples) and not absent else None,
    }
    return compared


def _describe(link: Link) -> dict[str, Any]:
    return link.model_dump(include={"asset", "fingerprint", "data_version", "created_at"})


def _compare_links(a: dict[str, Link], b: dict[str, Link]) -> Iterator[dict[str, Any]]:
    names = list(dict.fromkeys([*reversed(a), *reversed(b)]))
    for name in names:
        if name not in a or name not in b:
            yield {
                "asset": name,
                "kind": "artifact",
                "what": "there",
                "a": name in a,
                "b": name in b,
            }
            continue
        old, new = dict(_list_ingredients(a[name])), dict(_list_ingredients(b[name]))
        for kind, what in sorted(old.keys() | new.keys()):
            before, after = old.get((kind, what)), new.get((kind, what))
            if before != after:
                yield {"asset": name, "kind": kind, "what": what, "a": before, "b": after}


def _list_ingredients(link: Link) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield what was asked for and what the machine chose, without inputs (compared themselves)."""
    if link.ingredients is None:
        return
    for path, value in list_leaves(link.ingredients.model_dump(exclude={"inputs"})):
        group, _, name = path.partition(".")
        kind = "revision" if (group, name) == ("settings", "revision") else INGREDIENT_NAMES[group]
        yield (kind, name), value
    for path, value in list_leaves(link.resolved):
        yield ("machine", path), value


def _compare_rows(
    a: ExampleFiles, b: ExampleFiles, export: Path | None, form: str | None
) -> dict[str, Any]:
    with duckdb.connect() as con:
        if a == b:
            con.execute(
                f"CREATE TABLE changed AS SELECT 'added' AS change, * FROM "
                f"({select_rows(a, COLUMNS)}) LIMIT 0"
            )
        else:
            con.execute(f"CREATE VIEW a AS {select_rows(a, COLUMNS)}")
            con.execute(f"CREATE VIEW b AS {select_rows(b, COLUMNS)}")
            both = ", ".join(f"coalesce(b.{c}, a.{c}) AS {c}" for c in COLUMNS.split(", "))
            con.execute(
                "CREATE TABLE changed AS SELECT CASE WHEN a.row_id IS NULL THEN 'added' "
                f"WHEN b.row_id IS NULL THEN 'removed' ELSE 'moved' END AS change, {both} "
                "FROM a FULL JOIN b USING (row_id) "
                "WHERE a.row_id IS NULL OR b.row_id IS NULL OR a.side <> b.side"
            )
        if export is not None:
            con.execute(
                "COPY (SELECT * EXCLUDE question FROM changed ORDER BY change, row_id) TO "
                f"{quote(str(export))} (FORMAT {form})"
            )
        texts = {"added": b, "removed": a, "moved": b}
        return {change: _describe_rows(con, change, texts[change]) for change in texts}


def _describe_rows(
    con: duckdb.DuckDBPyConnection, change: str, examples: ExampleFiles
) -> dict[str, Any]:
    names = ("source", "file", "side", "rows")
    by_file = con.execute(
        "SELECT source, file, side, count(*) FROM changed WHERE change = $1 GROUP BY ALL "
        "ORDER BY ALL",
        [change],
    ).fetchall()
    rows = con.execute(
        "SELECT row_id, source, file, line, question FROM changed WHERE change = $1 "
        "ORDER BY source, file, line, row_id",
        [change],
    ).fetchall()
    first = [
        dict(zip(("row_id", "source", "file", "line", "text"), r, strict=True))
        for r in rows[:FIRST]
    ]
    texts = _find_prompts([r["row_id"] for r in first if r["text"] is None], examples)
    for row in first:
        row["text"] = row["text"] or texts.get(row["row_id"], "")
    return {
        "count": len(rows),
        "by_file": [dict(zip(names, row, strict=True)) for row in by_file],
        "first": first,
        "row_ids": [row[0] for row in rows],
    }


def _find_prompts(row_ids: list[str], examples: ExampleFiles) -> dict[str, str]:
    """Return the prompt of one example per row, for rows whose question was not kept."""
    found: dict[str, str] = {}
    for folder in examples if row_ids else ():
        file = quote(str(folder / EXAMPLES_FILE))
        made_of = duckdb.execute(
            f"SELECT source_rows, prompt FROM read_parquet({file}) "
            "WHERE list_has_any(source_rows, $1)",
            [row_ids],
        ).fetchall()
        for rows, prompt in made_of:
            found.update({row: prompt for row in rows if row in row_ids})
    return found
