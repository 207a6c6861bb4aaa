"""Lists of models that people want to keep, besides what recipes need.

<store>/promotions/models.jsonl    {"fingerprint": "8d2e…", "why": "served since May"}
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.records import DamagedRecord, parse_record, read_lines
from ft_pipeline.store.store import Store


class Promotion(BaseModel):
    """One line; its other fields are for people."""

    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")


SHAPE = TypeAdapter(Promotion)


def read_promoted(store: Store) -> set[str]:
    """Return the fingerprints in the lists.

    Raises PipelineError for a line without one: what to keep is then unknown.
    """
    files = sorted((store.root / "promotions").glob("*.jsonl"))
    lists = (file for file in files if not file.name.startswith("."))  # hidden: an editor's
    return {promotion.fingerprint for file in lists for promotion in _read(file)}


def _read(file: Path) -> Iterator[Promotion]:
    try:
        for number, line in enumerate(read_lines(file), start=1):
            if line.strip():
                yield parse_record(line.encode("utf-8"), SHAPE, f"{file}: line {number}")
    except DamagedRecord as error:
        raise PipelineError(
            f"gc: {error} Without it, gc cannot tell what is promoted; nothing was removed. "
            'Expected {"fingerprint": "32 hex characters"} in each line; fix the file, or remove '
            "it."
        ) from error
