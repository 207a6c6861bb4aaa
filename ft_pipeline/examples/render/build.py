"""From raw files to prompt/completion examples: asset `prompt_completions`.

One example of `examples.parquet`:

    {"example_id": "5f0a…", "task": "quiz_question", "side": "train",
     "prompt": "Generate a quiz question about Geography with easy difficulty.",
     "completion": "Question: Which river…", "source_rows": ["0b1d…"], "groups": ["93ac…"],
     "category": "Geography", "difficulty": "easy"}

`meta/rejected.jsonl` lists every rejected row with its place and the reason, `meta/rows.parquet`
every used row with its place, question, group and split.

Rows are read (rows.py), filtered by SQL in DuckDB, sorted by row_id (partition.py), deduplicated
(selection.py) and rendered, one part at a time, so that memory does not grow with the data.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ft_pipeline.config.recipe import ExampleInput, Examples, Split
from ft_pipeline.config.sources import Source
from ft_pipeline.config.templates import QUIZ_SET, TEMPLATES, Template, find_fields
from ft_pipeline.examples.read.database import keep_memory, open_database, quote, quote_name
from ft_pipeline.examples.read.parse import PARSERS, Parser
from ft_pipeline.examples.read.rows import RowReader, describe_columns, make_reader
from ft_pipeline.examples.read.text import count_control_tokens, sanitize_array
from ft_pipeline.examples.render.outputs import Outputs
from ft_pipeline.examples.render.sets import render_sets
from ft_pipeline.examples.render.templates import to_sql
from ft_pipeline.examples.select.filter import RowFilter
from ft_pipeline.examples.select.partition import Parts, find_repeated, in_batches
from ft_pipeline.examples.select.selection import Selection, select_rows
from ft_pipeline.examples.select.shares import draw_rows
from ft_pipeline.examples.select.split import assign_splits

# Fields of templates that are no columns, and the fields that they are made of.
_MADE_UP: dict[str, dict[str, set[str]]] = {
    "dialogue_label": {"task": {"label"}},
    "messages": {"prompt": {"messages"}, "completion": {"messages"}},
}


@dataclass(frozen=True)
class RawSource:
    """The files of a source by name, and how to read them."""

    declared: Source
    files: Mapping[str, Path]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@dataclass
class Input:
    """One source in progress: its reader, templates, and usable rows in order of row_id."""

    number: int
    given: ExampleInput
    raw: RawSource
    templates: dict[str, Template]
    split: Split
    reader: RowReader
    rows: Parts

    @property
    def parser(self) -> Parser:
        return PARSERS[self.given.parser]


def build_examples(
    examples: Examples,
    sources: Mapping[str, RawSource],
    folder: Path,
    held_out: Mapping[str, Path] | None = None,
    forgotten: Sequence[str] = (),
    row_cache: Path | None = None,
) -> dict[str, Any]:
    """Make all examples of a recipe and write them to `folder`; return the report.

    `held_out` gives the files of `examples.held_out` by name, `forgotten` the row ids that must not
    be used. Raises PipelineError if a file cannot be read, every row is rejected, or a split is
    empty.
    """
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name, keep_memory():
        scratch = Path(name)
        with open_database(scratch) as con, Outputs(folder, scratch, con, examples) as outputs:
            con.register("ids", pa.table({"row_id": pa.array(forgotten, pa.string())}))
            con.execute("CREATE TABLE forgotten AS FROM ids")
            inputs = [
                _open_input(number, given, sources[given.source], examples, scratch)
                for number, given in enumerate(examples.inputs)
            ]
            for each in inputs:
                _read_input(con, each, examples, outputs, bool(forgotten))
            questions = [_list_questions(con, each) for each in inputs]
            test_questions = {n: read_questions(n, path) for n, path in (held_out or {}).items()}
            selection = select_rows(con, examples, questions, test_questions, row_cache)
            for each in inputs:
                _render_input(con, each, selection, outputs, scratch, examples.sampling_seed)
            report = outputs.finish(sum(each.reader.read for each in inputs))
    report["columns"] = {each.given.source: describe_columns(each.reader) for each in inputs}
    outputs.write_report(report)
    return report


def needed_columns(given: ExampleInput, examples: Examples) -> tuple[str, ...]:
    """Return the fields and columns that an input's templates ask for."""
    templates = _choose_templates(given, examples)
    parser = PARSERS[given.parser]
    own = {*parser.rendered, *_MADE_UP.get(given.parser, {})}
    fields = {name for template in templates.values() for name in template.fields}
    return tuple(sorted(fields - own))


def list_template_fields(given: ExampleInput, examples: Examples) -> dict[str, set[str]]:
    """Return the fields that fill an input's prompts and completions."""
    templates = _choose_templates(given, examples).values()
    made_of = {"options": {"incorrect_answers"}, **_MADE_UP.get(given.parser, {})}
    named = {
        "prompt": {f for t in templates for f in find_fields(t.prompt)},
        "completion": {f for t in templates for f in find_fields(t.completion)},
    }
    return {
        column: {field for name in names for field in made_of.get(name, {name})}
        for column, names in named.items()
    }


def read_questions(name: str, path: Path) -> Iterator[str]:
    """Yield the questions of a held-out file. Raises PipelineError if it has no such column."""
    reader = make_reader(f"held_out {name}", Source(), "held_out")
    for batch in reader.read_batches({path.name: path}):
        yield from (question for question in batch.column("question").to_pylist() if question)


def _choose_templates(given: ExampleInput, examples: Examples) -> dict[str, Template]:
    shipped = TEMPLATES[given.parser]
    custom = {n: Template(t.prompt, t.completion) for n, t in examples.templates.items()}
    return {name: shipped.get(name) or custom[name] for name in given.templates}


def _open_input(
    number: int, given: ExampleInput, raw: RawSource, examples: Examples, scratch: Path
) -> Input:
    reader = make_reader(given.source, raw.declared, given.parser, needed_columns(given, examples))
    rows = Parts(scratch / f"rows{number}", raw.bytes)
    templates = _choose_templates(given, examples)
    return Input(number, given, raw, templates, examples.split, reader, rows)


def _read_input(
    con: duckdb.DuckDBPyConnection,
    each: Input,
    examples: Examples,
    outputs: Outputs,
    forgets: bool,
) -> None:
    """Read a source's rows, filter them, and sort the usable ones."""
    row_filter = RowFilter(
        con, each.reader, each.given, needed_columns(each.given, examples), examples
    )
    if forgets:
        row_filter.forget("forgotten")
    for rows in each.reader.map_batches(each.raw.files, row_filter.check):
        reasons = rows.column("reason")
        rejected = rows.filter(reasons.is_valid())
        if len(rejected):
            outputs.reject(each.given.source, rejected)
            rows = rows.filter(reasons.is_null())
        each.rows.write(rows.drop_columns(["reason", "text"]))
    each.rows.close()


def _settle(
    con: duckdb.DuckDBPyConnection, each: Input, columns: Sequence[str] = ()
) -> Iterator[tuple[pa.Table, pa.Table | None]]:
    """Yield, part by part, the kept rows, and the duplicates (with `repeats`) if any.

    Of rows with the same row_id, the one with the smallest values is kept, then the first by place.
    Kept rows have a `side`, their split by hash. `columns` limits the columns to these.
    """
    for part, table in each.rows.read_all(columns):
        repeated = find_repeated(table)
        if columns and repeated.any():
            table = each.rows.read(part)
        splits = assign_splits(pa.concat_arrays(table.column("question_group").chunks), each.split)
        table = table.append_column("side", splits)
        if not repeated.any():
            yield table, None
            continue
        dropped = _rank_repeated(con, table, repeated)
        kept = np.ones(len(table), bool)
        kept[dropped] = False
        duplicates = table.take(pa.array(dropped))
        duplicates = duplicates.append_column("repeats", duplicates.column("row_id"))
        yield table.filter(pa.array(kept)).combine_chunks(), duplicates


def _rank_repeated(
    con: duckdb.DuckDBPyConnection, table: pa.Table, repeated: np.ndarray
) -> np.ndarray:
    """Return the places of repeated rows, without the kept one."""
    places = np.flatnonzero(repeated)
    con.register("repeated", table.take(pa.array(places)).append_column("place", pa.array(places)))
    values = [n for n in table.column_names if n not in ("row_id", "file", "line")]
    order = ", ".join([*map(quote_name, values), "file", "line"])
    ranks = con.sql(
        f"SELECT place, row_number() OVER (PARTITION BY row_id ORDER BY {order}) AS rank "
        "FROM repeated"
    ).to_arrow_table()
    con.unregister("repeated")
    return np.sort(ranks.column("place").to_numpy()[ranks.column("rank").to_numpy() > 1])


def _list_questions(con: duckdb.DuckDBPyConnection, each: Input) -> Iterator[pa.Table]:
    """Yield what decides whether to keep a row: row_id, group, question, category and split."""
    has_category = "category" in each.parser.optional
    wanted = ["row_id", "question_group", each.parser.question]
    wanted += ["category"] if has_category else []
    for table, _ in _settle(con, each, wanted):
        missing = pa.chunked_array([pa.nulls(len(table), pa.string())])
        yield pa.table(
            {
                "row_id": table.column("row_id"),
                "question_group": table.column("question_group"),
                "question": table.column(each.parser.question),
                "category": table.column("category") if has_category else missing,
                "side": table.column("side"),
            }
        )


def _render_input(
    con: duckdb.DuckDBPyConnection,
    each: Input,
    selection: Selection,
    outputs: Outputs,
    scratch: Path,
    seed: int,
) -> None:
    """Render the rows of a source, part by part; write examples, used rows and rejected rows."""
    source = each.given.source
    members = Parts(scratch / f"sets{each.number}", each.raw.bytes)
    query = _render_query(each, seed)
    for settled, duplicates in _settle(con, each):
        used, dropped = selection.apply(settled)
        for rows, reason in ((duplicates, "duplicate"), (dropped, "")):
            if rows is not None:
                outputs.reject(source, rows, reason)
        con.register("part", in_batches(used))
        if query is not None:
            outputs.write_examples(_sanitize(con.sql(query).to_arrow_table(), each))
        outputs.write_rows(source, used, each.parser.question)
        if QUIZ_SET in each.templates:
            for batch in con.sql(_list_members(each)).to_arrow_table().to_batches():
                members.write(batch)
        con.unregister("part")
    members.close()
    for table in render_sets(con, members):
        outputs.write_examples(table)


def _sanitize(examples: pa.Table, each: Input) -> pa.Table:
    """Sanitize control tokens formed across fields, unless the template contains some."""
    shipped = TEMPLATES[each.given.parser]
    custom = [t for name, t in each.templates.items() if name not in shipped]
    if not custom or any(count_control_tokens(t.prompt + t.completion) for t in custom):
        return examples
    for name in ("prompt", "completion"):
        texts, touched = sanitize_array(pa.concat_arrays(examples.column(name).chunks))
        if touched is not None:
            examples = examples.set_column(examples.schema.get_field_index(name), name, texts)
    return examples


def _list_members(each: Input) -> str:
    """Return the query for the rows of sets, by the id of their set."""
    item = to_sql(each.templates[QUIZ_SET].completion, _columns(each))
    return (
        f"SELECT set_id AS row_id, position, row_id AS member, question_group, side, category, "
        f"{item} AS item FROM part JOIN members USING (row_id)"
    )


def _render_query(each: Input, seed: int) -> str | None:
    """Return the query that renders templates of single rows, row by row; None without any."""
    columns = _columns(each)
    has = {**each.parser.optional, **each.parser.fields}
    fixed = {
        "category": "nullif(category, '')" if "category" in has else "NULL::VARCHAR",
        "difficulty": "nullif(difficulty, '')" if "difficulty" in has else "NULL::VARCHAR",
        "history": "history" if each.parser.expand else "NULL::VARCHAR",
        "source_rows": "[row_id]",
        "groups": "[question_group]",
        "side": "side",
    }
    others = ", ".join(f"{sql} AS {name}" for name, sql in fixed.items())
    made = [
        f"SELECT row_id, {number} AS number, '{name}' AS task, {to_sql(t.prompt, columns)} AS "
        f"prompt, {to_sql(t.completion, columns)} AS completion, {others} FROM part WHERE "
        f"{draw_rows(each.given, name, seed)}"
        for number, (name, t) in enumerate(each.templates.items())
        if name != QUIZ_SET
    ]
    if not made:
        return None
    order = " ORDER BY row_id, number" if len(made) > 1 else ""
    return (
        "SELECT * EXCLUDE (row_id, number), md5(concat_ws(chr(31), task, history, prompt, "
        f"completion, row_id)) AS example_id FROM ({' UNION ALL '.join(made)}){order}"
    )


def _columns(each: Input) -> dict[str, str]:
    """Return the SQL of each field that a template may name."""
    columns = {name: quote_name(name) for name in each.reader.schema.names}
    columns |= {name: quote_name(column) for name, column in each.reader.internal.items()}
    columns |= {name: f"({sql})" for name, sql in each.parser.rendered.items()}
    if each.given.parser != "dialogue_label":
        return columns
    labels = sorted(set(each.given.labels.values()))
    question = f"Which label fits this dialogue: {' or '.join(labels)}?"
    columns["task"] = quote(question if labels else "Which label fits this dialogue?")
    return columns
