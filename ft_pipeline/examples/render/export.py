"""One split as JSONL: assets `train_set` and `val_set`.

One line of `train_set.jsonl`:

    {"prompt": "Generate a quiz question about…", "completion": "Question: …",
     "example_id": "5f0a…", "source_rows": ["0b1d…"], "task": "quiz_question"}

If some examples are chats with earlier turns, each line also has `history`: a list of messages,
empty for the other examples.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ft_pipeline.examples.read.database import open_database, quote
from ft_pipeline.examples.read.text import CONTROL_TOKENS
from ft_pipeline.examples.select.near_duplicates import NearIndex
from ft_pipeline.examples.select.split import SplitName

FIELDS = ("prompt", "completion", "example_id", "source_rows", "task")
EXPORT_BATCH_ROWS = 20_000
# `<think>` and `</think>`.
OWN_TOKENS = {"chain_of_thought": 2}


def write_split(examples_file: Path, split: SplitName, target: Path) -> int:
    """Write the examples of one split, in their order, to `target`; return their number."""
    count = 0
    with _open(examples_file) as con, target.open("wb") as file:
        chats = con.execute("SELECT count(history) FROM examples").fetchall()[0][0] > 0
        fields = [f"{name} := {name}" for name in FIELDS]
        if chats:
            fields.insert(0, "history := coalesce(history, '[]')::JSON")
        lines = con.sql(
            f"SELECT to_json(struct_pack({', '.join(fields)}))::VARCHAR || chr(10) AS line "
            f"FROM examples WHERE side = '{split}'"
        ).to_arrow_reader(EXPORT_BATCH_ROWS)
        for batch in lines:
            count += len(batch)
            file.write(_content(batch.column("line")))
    return count


def read_examples(
    examples_file: Path, query: str = "FROM examples", **values: Any
) -> list[dict[str, Any]]:
    """Return the records of a query over the table `examples`; `$name` stands for a value."""
    with _open(examples_file) as con:
        result = con.execute(query, values or None)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def find_leaks(examples_file: Path) -> list[str]:
    """Return the groups (questions) that have examples in both splits; none is expected."""
    found = read_examples(
        examples_file,
        "SELECT g FROM (SELECT unnest(groups) AS g, side FROM examples) "
        "GROUP BY g HAVING count(DISTINCT side) > 1 ORDER BY g",
    )
    return [row["g"] for row in found]


def find_empty_texts(examples_file: Path) -> list[str]:
    """Return the ids of examples with an empty prompt or completion; none is expected."""
    query = (
        "SELECT example_id FROM examples WHERE trim(prompt) = '' OR trim(completion) = '' "
        "OR prompt IS NULL OR completion IS NULL"
    )
    return [row["example_id"] for row in read_examples(examples_file, query)]


def find_forged_turns(examples_file: Path, own: Mapping[str, int] | None = None) -> list[str]:
    """Return the ids of examples with a control token that is not from a template.

    `own` is the number of such tokens in each task's own template.
    """
    given = {**OWN_TOKENS, **(own or {})}
    cases = " ".join(f"WHEN {quote(task)} THEN {count}" for task, count in given.items())
    text = "prompt || chr(10) || completion || chr(10) || coalesce(history, '')"
    found = f"len(regexp_extract_all({text}, {quote(f'(?i){CONTROL_TOKENS}')}))"
    query = (
        f"SELECT example_id FROM examples WHERE (contains({text}, '<') OR contains({text}, '[')) "
        f"AND {found} > CASE task {cases} ELSE 0 END"
    )
    return [row["example_id"] for row in read_examples(examples_file, query)]


def find_near_across_splits(rows_file: Path, threshold: float) -> list[tuple[int, int]]:
    """Return near pairs of questions (by the keys of their words), one in each split."""
    keys, splits, index = _index_questions(rows_file, threshold)
    pairs = index.find_pairs()
    of = dict(zip(keys, splits, strict=True))
    both = zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True)
    return [(a, b) for a, b in both if of[a] != of[b]]


def find_near_questions(rows_file: Path, threshold: float, questions: Iterable[str]) -> list[int]:
    """Return the used questions (by the keys of their words) that are near one of `questions`."""
    _, _, index = _index_questions(rows_file, threshold)
    return index.find_near(questions).tolist()


def _index_questions(rows_file: Path, threshold: float) -> tuple[list[int], list[str], NearIndex]:
    """Return key and split of each question, and an index of them."""
    rows = pq.read_table(rows_file, columns=["question", "side"])
    texts = pa.concat_arrays([*rows.column("question").chunks, pa.array([], pa.string())])
    index = NearIndex(threshold, None)
    return index.add(texts).tolist(), rows.column("side").to_pylist(), index


@contextmanager
def _open(examples_file: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a temporary database with the view `examples`."""
    with tempfile.TemporaryDirectory() as scratch, open_database(Path(scratch)) as con:
        con.execute(f"CREATE VIEW examples AS FROM read_parquet({quote(str(examples_file))})")
        yield con


def _content(texts: pa.Array) -> memoryview:
    """Return the concatenated bytes of an array's texts, without copying."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)
    start, end = offsets[texts.offset], offsets[texts.offset + len(texts)]
    return memoryview(texts.buffers()[2])[start:end]
