"""Sets of questions: which rows form a set, and how its example is rendered.

Membership depends on hashes alone (content-defined chunking, as in LBFS, SOSP 2001): within a
category and side, in the order of their hashes, a set ends after a question whose hash is divisible
by the mean size, or at twice the mean size. A new row changes the set that it falls into, sometimes
the next few: at a mean size of 3, up to two sets in four cases of five.
"""

from collections.abc import Iterable, Iterator

import duckdb
import pyarrow as pa

from ft_pipeline.examples.database import quote
from ft_pipeline.examples.order import Parts
from ft_pipeline.examples.templates import QUIZ_SET, QUIZ_SET_PROMPT, to_sql

Member = tuple[str, str, bool]  # row_id, shelf (category and side), whether its hash ends a set


def form_sets(rows: Iterable[Member], mean_size: int) -> Iterator[list[str]]:
    """Cut rows, sorted by shelf and hash, into sets of at least two; yield their row_ids.

    A row that is alone on its shelf is in no set.
    """
    shelf, current, last = "", list[str](), list[str]()
    for row_id, its_shelf, ends in rows:
        if its_shelf != shelf:
            yield from _close_shelf(last, current)
            shelf, current, last = its_shelf, [], []
        current.append(row_id)
        if len(current) >= 2 and (ends or len(current) == 2 * mean_size):
            if last:
                yield last
            last, current = current, []
    yield from _close_shelf(last, current)


def _close_shelf(last: list[str], rest: list[str]) -> Iterator[list[str]]:
    if last and len(rest) == 1:
        yield last + rest
        return
    yield from (members for members in (last, rest) if len(members) >= 2)


def render_sets(con: duckdb.DuckDBPyConnection, members: Parts) -> Iterator[pa.Table]:
    """Yield the examples of sets, given their members: `row_id` is the set's (its first row's)."""
    columns = {"n": "n", "category": "category"}
    for part in members.parts():
        con.register("members_of_part", members.read(part))
        yield con.sql(
            f"SELECT md5(concat_ws(chr(31), '{QUIZ_SET}', prompt, completion, "
            f"array_to_string(source_rows, ' '))) AS example_id, '{QUIZ_SET}' AS task, side, "
            "prompt, completion, NULL::VARCHAR AS history, source_rows, groups, category, "
            f"NULL::VARCHAR AS difficulty FROM (SELECT *, {to_sql(QUIZ_SET_PROMPT, columns)} "
            "AS prompt FROM (SELECT row_id, any_value(side) AS side, any_value(category) AS "
            "category, count(*) AS n, list(member ORDER BY position) AS source_rows, "
            "list(question_group ORDER BY position) AS groups, string_agg('Question ' || position "
            f"|| item, {quote(chr(10) * 2)} ORDER BY position) AS completion "
            "FROM members_of_part GROUP BY row_id)) ORDER BY source_rows[1]"
        ).to_arrow_table()
        con.unregister("members_of_part")
