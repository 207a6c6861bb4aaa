"""Which usable rows to keep: each is dropped for a reason, or gets its split and its set.

In this order: rows near a held-out question are `contaminated`; one of each group of
near-duplicates is kept; `limit` and `weight` sample the rest; each question gets its split;
training rows near a validation question are `contaminated` if near-duplicates are kept; rows that
no template's share takes are `not_sampled`; sets are formed. Every decision depends only on hashes
and contents, never on the order of files or rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.config.recipe import ExampleInput, Examples
from ft_pipeline.config.templates import QUIZ_SET
from ft_pipeline.examples.select.near_duplicates import NearIndex, find_clusters
from ft_pipeline.examples.select.partition import hex_to_uint64
from ft_pipeline.examples.select.sets import form_sets
from ft_pipeline.examples.select.shares import draw_rows, draw_rows_of_any
from ft_pipeline.examples.select.split import draw_splits

BATCH_ROWS = 50_000


@dataclass(frozen=True)
class Selection:
    """The decisions: dropped rows (row_id, reason, repeats) and drawn splits, each sorted by id."""

    dropped: pa.Table | None = None
    drawn_splits: pa.Table | None = None

    def apply(self, rows: pa.Table) -> tuple[pa.Table, pa.Table | None]:
        """Return the kept rows with their drawn split, and the dropped ones if any."""
        dropped = None
        if self.dropped is not None:
            at = _find_ids(self.dropped.column("row_id"), rows.column("row_id"))
            hit = at >= 0
            if hit.any():
                why = self.dropped.select(["reason", "repeats"]).take(pa.array(at[hit]))
                dropped = rows.filter(pa.array(hit))
                for name in why.column_names:
                    dropped = dropped.append_column(name, why.column(name))
                rows = rows.filter(pa.array(~hit)).combine_chunks()
        if self.drawn_splits is not None and len(rows):
            groups = self.drawn_splits.column("question_group")
            at = _find_ids(groups, rows.column("question_group"))
            splits = self.drawn_splits.column("side").take(pa.array(at))
            rows = rows.set_column(rows.schema.get_field_index("side"), "side", splits)
        return rows, dropped


def _find_ids(known: pa.ChunkedArray, wanted: pa.ChunkedArray) -> np.ndarray:
    """Return the position of each id (16 or 32 hex characters) in sorted ids, or -1."""
    if not len(known) or not len(wanted):
        return np.full(len(wanted), -1)
    numbers, ours = _leading(known), _leading(wanted)
    at = np.minimum(np.searchsorted(numbers, ours), len(numbers) - 1)
    return np.where(numbers[at] == ours, at, -1)


def _leading(ids: pa.ChunkedArray) -> np.ndarray:
    return hex_to_uint64(pc.utf8_slice_codeunits(pa.concat_arrays(ids.chunks), 0, 16))


class _Keys:
    """The rows in narrow form in the table `keys`, and the questions if needed."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        con.execute(
            "CREATE TABLE keys (input INTEGER, row_id VARCHAR, question_group VARCHAR, "
            "question_key UBIGINT, category VARCHAR, side VARCHAR)"
        )
        con.execute("CREATE TABLE dropped (row_id VARCHAR, reason VARCHAR, repeats VARCHAR)")

    def add(self, number: int, tables: Iterable[pa.Table], index: NearIndex | None) -> None:
        for table in tables:
            keys = pa.nulls(len(table), pa.uint64())
            if index is not None:
                keys = pa.array(index.add(pa.concat_arrays(table.column("question").chunks)))
            self._con.register("added", table.append_column("question_key", keys))
            self._con.execute(
                f"INSERT INTO keys SELECT {number}, row_id, question_group, question_key, "
                "category, side FROM added"
            )
            self._con.unregister("added")


def select_rows(
    con: duckdb.DuckDBPyConnection,
    examples: Examples,
    rows: Sequence[Iterator[pa.Table]],
    held_out: Mapping[str, Iterable[str]],
    row_cache: Path | None,
) -> Selection:
    """Decide on all rows. `rows` are those of each input, with row_id, question_group, question
    and category; `held_out` the test questions by name of their file.

    Raises PipelineError if a split stays empty.
    """
    inputs, threshold = examples.inputs, examples.near_duplicates.threshold
    drawn = examples.split.method == "random"
    sampled = any(given.limit or given.weight or given.shares for given in inputs)
    sets = [n for n, given in enumerate(inputs) if QUIZ_SET in given.templates]
    if threshold is None and not (drawn or sampled or sets):
        return Selection()
    keys = _Keys(con)
    index = NearIndex(threshold, row_cache) if threshold is not None else None
    for number, tables in enumerate(rows):
        keys.add(number, tables, index)
    if index is not None:
        _drop_held_out(con, index, held_out)
        pairs = index.find_pairs()
        if examples.near_duplicates.keep == "one":
            _drop_near_duplicates(con, pairs)
    _sample(con, inputs, examples.sampling_seed)
    if drawn:
        _draw_splits(con, examples)
    if index is not None and examples.near_duplicates.keep == "all":
        _drop_contaminated(con, pairs)
    for number, given in enumerate(inputs):
        if given.shares:
            _drop_undrawn(con, number, given, examples.sampling_seed)
    for number in sets:
        _form_sets(con, number, inputs[number], examples.sampling_seed)
    dropped = con.sql("FROM dropped ORDER BY row_id").to_arrow_table()
    splits = con.sql("FROM drawn_splits ORDER BY 1").to_arrow_table() if drawn else None
    return Selection(dropped if len(dropped) else None, splits)


def _drop_held_out(
    con: duckdb.DuckDBPyConnection, index: NearIndex, held_out: Mapping[str, Iterable[str]]
) -> None:
    for name, questions in held_out.items():
        near = index.find_near(questions)
        con.register("near", pa.table({"question_key": near}))
        con.execute(
            "INSERT INTO dropped SELECT row_id, 'contaminated', $1 FROM keys SEMI JOIN near USING "
            "(question_key) ANTI JOIN dropped USING (row_id)",
            [name],
        )
        con.unregister("near")


def _drop_near_duplicates(con: duckdb.DuckDBPyConnection, pairs: pa.Table) -> None:
    con.register("clusters", find_clusters(pairs))
    con.execute(
        "INSERT INTO dropped SELECT row_id, 'near_duplicate', kept FROM (SELECT row_id, "
        "first_value(row_id) OVER one AS kept, row_number() OVER one AS rank FROM (SELECT keys.*, "
        "coalesce(cluster, question_key) AS same FROM keys LEFT JOIN clusters USING "
        "(question_key) ANTI JOIN dropped USING (row_id)) WINDOW one AS (PARTITION BY same "
        "ORDER BY input, row_id)) WHERE rank > 1"
    )
    con.unregister("clusters")


def _sample(con: duckdb.DuckDBPyConnection, inputs: Sequence[ExampleInput], seed: int) -> None:
    for number, given in enumerate(inputs):
        if given.limit is not None:
            _keep_sample(con, number, given.limit, seed)
    weights = {number: given.weight for number, given in enumerate(inputs) if given.weight}
    counts = dict(
        con.execute(
            "SELECT input, count(*) FROM keys ANTI JOIN dropped USING (row_id) GROUP BY 1"
        ).fetchall()
    )
    if weights:
        there = {number: weight for number, weight in weights.items() if number in counts}
        scale = min((counts[number] / weight for number, weight in there.items()), default=0.0)
        for number, weight in there.items():
            _keep_sample(con, number, max(1, round(weight * scale)), seed)


def _keep_sample(con: duckdb.DuckDBPyConnection, number: int, count: int, seed: int) -> None:
    """Keep the rows with the smallest seeded hashes: a sample that changes little as data grows."""
    con.execute(
        "INSERT INTO dropped SELECT row_id, 'not_sampled', NULL FROM (SELECT row_id, row_number() "
        "OVER (ORDER BY md5($1 || ':' || row_id)) AS rank FROM keys ANTI JOIN dropped USING "
        "(row_id) "
        "WHERE input = $2) WHERE rank > $3",
        [str(seed), number, count],
    )


def _draw_splits(con: duckdb.DuckDBPyConnection, examples: Examples) -> None:
    groups = con.execute(
        "SELECT DISTINCT question_group FROM keys ANTI JOIN dropped USING (row_id) ORDER BY 1"
    ).fetchall()
    splits = draw_splits([group for (group,) in groups], examples.split) if groups else {}
    con.register(
        "drawn",
        pa.table(
            {
                "question_group": pa.array(list(splits), pa.string()),
                "side": pa.array(list(splits.values()), pa.string()),
            }
        ),
    )
    con.execute("CREATE TABLE drawn_splits AS FROM drawn")
    con.execute(
        "UPDATE keys SET side = drawn_splits.side FROM drawn_splits "
        "WHERE keys.question_group = drawn_splits.question_group"
    )


def _drop_contaminated(con: duckdb.DuckDBPyConnection, pairs: pa.Table) -> None:
    con.register("pairs", pairs)
    con.execute(
        "INSERT INTO dropped WITH sided AS (FROM keys ANTI JOIN dropped USING (row_id)), "
        "both_ways AS "
        "(SELECT a, b FROM pairs UNION ALL "
        "SELECT b, a FROM pairs) SELECT train.row_id, 'contaminated', min(val.row_id) FROM sided "
        "AS train JOIN both_ways ON train.question_key = a JOIN sided AS val ON "
        "val.question_key = b WHERE train.side = 'train' AND val.side = 'val' GROUP BY 1"
    )
    con.unregister("pairs")


def _drop_undrawn(
    con: duckdb.DuckDBPyConnection, number: int, given: ExampleInput, seed: int
) -> None:
    con.execute(
        "INSERT INTO dropped SELECT row_id, 'not_sampled', NULL FROM keys ANTI JOIN dropped USING "
        f"(row_id) WHERE input = {number} AND NOT {draw_rows_of_any(given, given.templates, seed)}"
    )


def _form_sets(con: duckdb.DuckDBPyConnection, number: int, given: ExampleInput, seed: int) -> None:
    """Fill the table `members`; if the recipe only asks for sets, drop rows that are in none."""
    con.execute(
        "CREATE TABLE IF NOT EXISTS members (row_id VARCHAR, set_id VARCHAR, position INTEGER)"
    )
    rows = (
        con.cursor()
        .sql(
            f"SELECT row_id, category || chr(31) || side AS shelf, md5_number_lower('cut:' || "
            f"question_group) % {given.set_size} = 0 AS ends FROM keys ANTI JOIN dropped USING "
            f"(row_id) WHERE input = {number} AND {draw_rows(given, QUIZ_SET, seed)} ORDER BY "
            "shelf, md5_number_lower('set:' || question_group), row_id"
        )
        .to_arrow_reader(BATCH_ROWS)
    )
    sets = form_sets(_list_rows(rows), given.set_size)
    while some := list(islice(sets, BATCH_ROWS)):
        formed = {
            "row_id": [row_id for one_set in some for row_id in one_set],
            "set_id": [one_set[0] for one_set in some for _ in one_set],
            "position": [place for one_set in some for place in range(1, len(one_set) + 1)],
        }
        con.register("formed", pa.table(formed))
        con.execute("INSERT INTO members FROM formed")
        con.unregister("formed")
    others = [name for name in given.templates if name != QUIZ_SET]
    con.execute(
        "INSERT INTO dropped SELECT row_id, 'too_few_for_a_set', NULL FROM keys ANTI JOIN members "
        f"USING (row_id) ANTI JOIN dropped USING (row_id) WHERE input = {number} AND NOT "
        f"{draw_rows_of_any(given, others, seed)}"
    )


def _list_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, str, bool]]:
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in ("row_id", "shelf", "ends")]
        yield from zip(*columns, strict=True)
