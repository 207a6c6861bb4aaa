"""The data sets that `sources.yaml` declares.

One declared source, as people write it:

    trivia:
      kind: kaggle
      handle: shreyasur965/open-trivia-database-quiz-questions-all-categories
      files: ["*.csv"]
      identity: [question, correct_answer]
      sample: data/samples/trivia.csv
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ft_pipeline.errors import suggest
from ft_pipeline.settings import Section, SettingsError, read_yaml, validate

SOURCES_FILE = "sources.yaml"

FileName = Annotated[str, Field(min_length=1)]


class Source(Section):
    """What every kind of source declares."""

    description: str = Field(default="", description="What one row is; shown in the UI.")
    licence: str = Field(default="unknown", description="Licence of the data; goes into receipts.")
    identity: tuple[str, ...] = Field(
        default=(),
        description="Columns that make a row the same row (row_id); default: all columns.",
    )
    sample: FileName | None = Field(
        default=None,
        description="Bundled file in the same format, read where a recipe says "
        "`use_samples: true`; path relative to the project's root.",
    )


class KaggleSource(Source):
    """A Kaggle data set, downloaded by kagglehub."""

    kind: Literal["kaggle"]
    handle: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="`owner/data-set`.")
    version: int | None = Field(
        default=None, ge=1, description="Pinned version; default: the newest when first resolved."
    )
    files: tuple[FileName, ...] = Field(
        default=("*.csv", "*.json", "*.jsonl"), description="Glob patterns of the files to read."
    )


class HuggingFaceSource(Source):
    """A data set repository of the Hugging Face hub, its files at one commit."""

    kind: Literal["huggingface"]
    id: str = Field(pattern=r"^[^/\s]+(/[^/\s]+)?$", description="`owner/data-set`.")
    revision: str | None = Field(
        default=None,
        description="Pinned commit, branch or tag; default: `main` when first resolved.",
    )
    files: tuple[FileName, ...] = Field(
        default=("*.json", "*.jsonl", "*.csv"), description="Glob patterns of the files to read."
    )


class FilesSource(Source):
    """A file, or all files of a folder or glob pattern, on this machine."""

    kind: Literal["files"]
    path: FileName = Field(
        description="File, folder or glob pattern, relative to the project's root or absolute."
    )


AnySource = KaggleSource | HuggingFaceSource | FilesSource
KINDS: dict[str, type[Source]] = {
    "kaggle": KaggleSource,
    "huggingface": HuggingFaceSource,
    "files": FilesSource,
}


def load_sources(root: Path) -> dict[str, AnySource]:
    """Read and validate `sources.yaml`. Raises SettingsError."""
    declared = read_yaml(root / SOURCES_FILE, SOURCES_FILE)
    return {name: _load_source(name, data) for name, data in declared.items()}


def _load_source(name: str, data: Any) -> AnySource:
    origin = f"{SOURCES_FILE}: {name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise SettingsError(
            f"{origin}: a source's name becomes an asset's name; use lower-case letters, digits "
            "and underscores, beginning with a letter."
        )
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise SettingsError(
            f"{origin}: kind: expected one of {', '.join(KINDS)} (found: {kind!r})."
            f"{suggest(str(kind), list(KINDS))}"
        )
    source = validate(KINDS[kind], data, origin)
    assert isinstance(source, AnySource)  # narrows the type; KINDS holds nothing else
    return source
