"""Which rows can be used: row_id, group, and the reason against each rejected one, by SQL.

The rules come from the parser (parse.py) and the recipe. Several threads check batches at once,
each with its own cursor.
"""

import threading

import duckdb
import pyarrow as pa

from ft_pipeline.config.recipe import ExampleInput, Examples
from ft_pipeline.examples.read.database import quote, quote_name
from ft_pipeline.examples.read.rows import RowReader
from ft_pipeline.examples.read.values import normalize_label

# Columns of a batch that nobody needs behind the verdict.
_DONE = ("identity", "letters", "broken")


class RowFilter:
    """Decides whether each row of a source can be used, and why not."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        reader: RowReader,
        given: ExampleInput,
        needed: tuple[str, ...],
        examples: Examples,
    ) -> None:
        self._con, self._local = con, threading.local()
        self._parser = reader.parser
        self._normal = dict(reader.parser.normal)
        self._rules = [*reader.parser.rules]
        if given.labels:
            self._name_labels(given.labels)
        for name in needed:
            if name not in reader.parser.fields:
                column = quote_name(reader.internal.get(name, name))
                self._rules.append(("empty_text", f"{column} = ''"))
        if examples.control_tokens == "reject":
            self._rules.insert(0, ("control_tokens", "controlled"))

    def forget(self, table: str) -> None:
        """Reject the rows whose row_id is in a table of the database."""
        self._rules.insert(0, ("forgotten", f"row_id IN (SELECT row_id FROM {table})"))

    def check(self, batch: pa.RecordBatch) -> pa.Table:
        """Return the rows with `row_id`, `question_group` and `reason` (null: usable)."""
        if not hasattr(self._local, "cursor"):
            self._local.cursor = self._con.cursor()
        rows = pa.Table.from_batches([batch])
        self._local.cursor.register("read", rows)
        found = self._local.cursor.sql(self._query()).to_arrow_table().combine_chunks()
        kept = {n: rows.column(n) for n in rows.column_names if n not in _DONE}
        checked = {name: found.column(name) for name in found.column_names}
        return pa.table(
            {**checked, **kept, **{n: checked[n] for n in self._normal}}
        ).combine_chunks()

    def _name_labels(self, labels: dict[str, str]) -> None:
        cases = " ".join(
            f"WHEN {quote(normalize_label(key).lower())} THEN {quote(text)}"
            for key, text in labels.items()
        )
        self._normal["label"] = f"CASE lower(label) WHEN '' THEN '' {cases} END"
        self._rules.append(("unknown_label", "label IS NULL"))

    def _query(self) -> str:
        cases = " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in self._rules)
        replaced = ", ".join(f"{sql} AS {quote_name(n)}" for n, sql in self._normal.items())
        derived = "".join(f", {sql} AS {quote_name(n)}" for n, sql in self._parser.derived.items())
        shown = "".join(f", {quote_name(name)}" for name in self._normal)
        return (
            f"SELECT row_id, question_group{shown}, CASE WHEN broken IS NOT NULL THEN broken "
            f"{cases} END AS reason FROM (SELECT *{derived} FROM (SELECT left(sha256(identity), "
            "32) AS row_id, left(md5(letters), 16) AS question_group, * "
            f"{f'REPLACE ({replaced})' if replaced else ''} FROM read))"
        )
