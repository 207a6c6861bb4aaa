"""Find raw rows by their text, with the row_id that all recipes use."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.config.sources import Source
from ft_pipeline.examples.read.rows import PLACE, compute_row_id, make_reader
from ft_pipeline.examples.read.text import clean


def find_rows(
    source: str,
    declared: Source,
    parser: str,
    files: Mapping[str, Path],
    text: str,
    columns: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Return row_id, source, file, line and text of the rows with `text` in a field.

    `columns`: additional ones that templates of the recipe use.
    """
    reader = make_reader(source, declared, parser, columns)
    text = clean(text)
    found: list[dict[str, Any]] = []
    for batch in reader.read_batches(files):
        shown = _join_fields(batch)
        both = pc.binary_join_element_wise(shown, batch.column("identity"), " ")
        both = pc.replace_substring_regex(both, r"\s+", " ")  # as `clean` leaves the text
        hits = pc.match_substring(both, text, ignore_case=True)
        chosen = pc.and_(hits, batch.column("identity").is_valid())
        for row, words in zip(
            batch.select(["identity", "file", "line"]).filter(chosen).to_pylist(),
            shown.filter(chosen).to_pylist(),
            strict=True,
        ):
            row_id = compute_row_id(row.pop("identity"))
            found.append({"row_id": row_id, "source": source, **row, "text": words})
    return found


def _join_fields(batch: pa.RecordBatch) -> pa.Array:
    texts = []
    for name in batch.schema.names:
        column = batch.column(name)
        if name not in PLACE:
            is_list = pa.types.is_list(column.type)
            texts.append(pc.binary_join(column, " | ") if is_list else column)
    return pc.binary_join_element_wise(*texts, " ", null_handling="skip")
