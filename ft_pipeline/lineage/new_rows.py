"""How many rows of the raw files are not in certain examples."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from ft_pipeline.base.jsonl import iterate_jsonl
from ft_pipeline.config.sources import Source
from ft_pipeline.examples.read.rows import compute_row_id, make_reader
from ft_pipeline.store.artifact_files import REJECTED_FILE, ROWS_FILE


def list_row_ids(source: str, declared: Source, parser: str, files: Mapping[str, Path]) -> set[str]:
    """Return the row_ids of all readable rows of a source's files."""
    reader = make_reader(source, declared, parser)
    return {
        compute_row_id(identity)
        for batch in reader.read_batches(files)
        for identity in batch.column("identity").drop_null().unique().to_pylist()
    }


def list_known_rows(examples: Path) -> set[str]:
    """Return the row_ids, used and rejected, that a `prompt_completions` artifact was made from."""
    used = pq.read_table(examples / ROWS_FILE, columns=["row_id"]).column("row_id").to_pylist()
    rejected = (line["row_id"] for line in iterate_jsonl(examples / REJECTED_FILE))
    return {*used, *(row_id for row_id in rejected if row_id)}
