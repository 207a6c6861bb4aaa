"""The data sets that `sources.yaml` declares.

One declared source, as people write it:

    trivia:
      kind: kaggle
      handle: shreyasur965/open-trivia-database-quiz-questions-all-categories
      files: ["*.csv"]
      identity: [question, correct_answer]
      sample: data/samples/trivia.csv
"""

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ft_pipeline.base.durations import Duration
from ft_pipeline.base.errors import suggest
from ft_pipeline.base.network.secrets import hide_secrets
from ft_pipeline.base.settings import Section, SettingsError, read_yaml, validate

SOURCES_FILE = "sources.yaml"

FileName = Annotated[str, Field(min_length=1)]
ColumnName = Annotated[str, Field(min_length=1)]
Names = tuple[ColumnName, ...]


class Format(Section):
    """How to read the files of a source; by default each file's suffix and header decide."""

    type: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "text"] = Field(
        default="auto",
        description="`auto`: by the suffix, also inside `.gz` and `.zip`. `text` needs `pattern`.",
    )
    encoding: str | None = Field(
        default=None,
        description="Encoding of text files, by its Python name (`gbk`, `latin-1`); default: "
        "UTF-8, with or without a byte order mark, where single values may be in cp1252.",
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Field delimiter of a CSV; default: a comma, in TSV a tab.",
    )
    header: Names | None = Field(
        default=None, description="Column names of a CSV or TSV that has no header line."
    )
    pattern: str | None = Field(
        default=None,
        description="For `text`: a regular expression (Python's `re`, multi-line) that matches "
        "one row; its named groups become the columns.",
    )
    escapes: bool = Field(
        default=False,
        description="Read `\\n`, `\\t`, `\\r` and `\\\\` inside a field as escape sequences.",
    )
    list_delimiter: str | None = Field(
        default=None,
        min_length=1,
        description="Delimiter of a list inside one field; default: JSON or Python lists, "
        "otherwise ` | `, `|`, `;` or `,`, whichever is found first.",
    )
    max_bytes: int = Field(
        default=20_000_000_000,
        ge=1,
        description="Maximum size of one file after decompression, in bytes; guards against "
        "compression bombs.",
    )

    @model_validator(mode="after")
    def _is_readable(self) -> "Format":
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError as error:
                raise ValueError(f"`encoding`: {error}") from error
        if (self.pattern is None) != (self.type != "text"):
            raise ValueError("`pattern` goes with `type: text`, which requires it")
        try:
            groups = re.compile(self.pattern or "(?P<x>)").groupindex
        except re.error as error:
            raise ValueError(f"`pattern` is not a regular expression: {error}") from error
        if not groups:
            raise ValueError("`pattern` has no named group `(?P<column>…)`, so it has no columns")
        return self


class Source(Section):
    """Settings of every kind of source."""

    description: str = Field(default="", description="What one row holds; shown in the UI.")
    licence: str = Field(
        default="unknown", description="Licence of the data; recorded in receipts."
    )
    identity: Names = Field(
        default=(),
        description="Columns that identify a row and make its row_id; default: all columns.",
    )
    format: Format = Field(default_factory=Format, description="How to read its files.")
    columns: Names = Field(default=(), description="Columns to read; default: all.")
    aliases: dict[ColumnName, ColumnName | Names] = Field(
        default={},
        description="For each column name that parsers and templates use, its name in the files: "
        "`{question: [question_text, q]}`; `answer.value` reaches into a nested column. Common "
        "names need no entry.",
    )
    sample: FileName | None = Field(
        default=None,
        description="Bundled file in the same format, read when a recipe sets `use_samples: "
        "true`; path relative to the project root.",
    )
    observe_every: Duration | None = Field(
        default=None,
        description="How often the sensor looks for new data (`30s`, `12h`); default: 30s for "
        "local and dropped files, 10m for sources on the network.",
    )


class KaggleSource(Source):
    """A Kaggle data set, downloaded by kagglehub."""

    kind: Literal["kaggle"]
    handle: str = Field(pattern=r"^[^/\s]+/[^/\s]+$", description="`owner/data-set`.")
    version: int | None = Field(
        default=None,
        ge=1,
        description="Version to pin; default: the newest one when first resolved.",
    )
    files: tuple[FileName, ...] = Field(
        default=("*.csv", "*.json", "*.jsonl"), description="Glob patterns for the files to read."
    )


class HuggingFaceSource(Source):
    """A data set repository on the Hugging Face hub, at one commit."""

    kind: Literal["huggingface"]
    id: str = Field(pattern=r"^[^/\s]+(/[^/\s]+)?$", description="`owner/data-set`.")
    revision: str | None = Field(
        default=None,
        description="Commit, branch or tag to pin; default: `main` when first resolved.",
    )
    config: str | None = Field(
        default=None, description="Configuration (subset) of the data set, as named on its page."
    )
    split: str | None = Field(
        default=None, description="Split to read, such as `train`; default: all splits."
    )
    files: tuple[FileName, ...] = Field(
        default=(),
        description="Glob patterns for the files to read; default: all data files that the "
        "repository declares for `config` and `split`. Given together with these, patterns select "
        "among the declared files.",
    )


class UrlSource(Source):
    """One file at an http or https address."""

    kind: Literal["url"]
    url: str = Field(
        pattern=r"^https?://[^\s/]+\S*$",
        description="Address of the file. Put logins in ~/.netrc; a login in the address works, "
        "too, and is never shown or recorded.",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Expected hash of the file; other content is refused.",
    )
    max_bytes: int = Field(
        default=2_000_000_000, ge=1, description="Maximum size of the download, in bytes."
    )


class FilesSource(Source):
    """A file, or all files of a folder or glob pattern, local or at an fsspec address."""

    kind: Literal["files"]
    path: FileName = Field(
        description="File, folder or glob pattern, absolute or relative to the project root; or "
        "an fsspec URL such as `s3://bucket/folder/*.csv`."
    )

    @field_validator("path")
    @classmethod
    def _is_not_http(cls, path: str) -> str:
        if re.match(r"https?://", path):
            raise ValueError("use `kind: url` for an http or https address")
        return path


AnySource = KaggleSource | HuggingFaceSource | UrlSource | FilesSource
KINDS: dict[str, type[Source]] = {
    "kaggle": KaggleSource,
    "huggingface": HuggingFaceSource,
    "url": UrlSource,
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
            f"{origin}: source names become asset names; use lower-case letters, digits and "
            "underscores, starting with a letter."
        )
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise SettingsError(
            f"{origin}: kind: expected one of {', '.join(KINDS)} (found: {kind!r})."
            f"{suggest(str(kind), list(KINDS))}"
        )
    source = _validate(KINDS[kind], data, origin)
    assert isinstance(source, AnySource)  # narrows the type; KINDS holds nothing else
    return source


def _validate(kind: type[Source], data: dict[str, Any], origin: str) -> Source:
    """Validate a declaration; errors show the values found, but never a login in an address."""
    try:
        return validate(kind, data, origin)
    except SettingsError:
        shown = {k: hide_secrets(v) if isinstance(v, str) else v for k, v in data.items()}
        if shown == data:
            raise
    validate(kind, shown, origin)
    raise SettingsError(
        f"{origin}: an address is not valid (not shown, because it has a login or a query). "
        "Expected http:// or https:// and no spaces; write a space as %20."
    )
