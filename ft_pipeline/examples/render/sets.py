"""The examples of sets: several questions in one prompt (examples/select/sets.py forms them)."""

from collections.abc import Iterator

import duckdb
import pyarrow as pa

from ft_pipeline.config.templates import QUIZ_SET, QUIZ_SET_PROMPT
from ft_pipeline.examples.read.database import quote
from ft_pipeline.examples.render.templates import to_sql
from ft_pipeline.examples.select.partition import Parts


def render_sets(con: duckdb.DuckDBPyConnection, members: Parts) -> Iterator[pa.Table]:
    """Yield the examples of sets, given their members: `row_id` is that of the set's first row."""
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
