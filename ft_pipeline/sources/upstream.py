"""The upstream revision of a source: Kaggle version, hub commit, or hash of the local files.

What was last resolved from the network lies in `<store>/upstream/<source>.json`, for example

    {"source": "cot", "asked": {"kind": "huggingface", "id": "…"}, "revision": "9f1c…"}

and moves only by `refresh`, so that every machine that shares a store computes the same
fingerprints.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from ft_pipeline.artifacts import hash_file, hash_json
from ft_pipeline.errors import PipelineError
from ft_pipeline.sources import huggingface, kaggle
from ft_pipeline.sources.catalog import (
    AnySource,
    FilesSource,
    HuggingFaceSource,
    KaggleSource,
)
from ft_pipeline.sources.files import copy_files, list_local_files
from ft_pipeline.stamps import hash_files


def describe_request(source: AnySource) -> dict[str, Any]:
    """Return the declared fields that decide which bytes are fetched."""
    # As JSON holds it: a tuple would never equal the list that was read back from the record.
    return source.model_dump(mode="json", exclude={"description", "licence", "identity", "sample"})


def read_revision(
    name: str, source: AnySource, root: Path, store: Path, use_sample: bool
) -> str | None:
    """Return the revision to build, without the network; None where none was resolved yet.

    Raises PipelineError where a local file is missing.
    """
    if use_sample:
        return "sha256:" + hash_file(sample_file(name, source, root))
    if isinstance(source, FilesSource):
        files = list_local_files(source.path, root)
        return "sha256:" + hash_json(hash_files(files, store / "upstream" / f"{name}.stamp.json"))
    if isinstance(source, KaggleSource) and source.version is not None:
        return str(source.version)
    try:
        recorded = json.loads(_record(name, store).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return str(recorded["revision"]) if recorded["asked"] == describe_request(source) else None


def resolve_revision(name: str, source: AnySource, root: Path, store: Path) -> str:
    """Ask upstream for the newest revision and record it. Raises PipelineError with the remedy."""
    if isinstance(source, FilesSource):
        return str(read_revision(name, source, root, store, use_sample=False))
    if isinstance(source, HuggingFaceSource):
        revision = huggingface.resolve_commit(name, source)
    else:
        revision = str(source.version or kaggle.resolve_version(name, source))
    record = {"source": name, "asked": describe_request(source), "revision": revision}
    file = _record(name, store)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.rename(file)
    return revision


def fetch(
    name: str, source: AnySource, revision: str, root: Path, folder: Path, use_sample: bool
) -> None:
    """Bring the files of one revision, unchanged, into `folder`. Raises PipelineError."""
    if use_sample:
        file = sample_file(name, source, root)
        copy_files({file.name: file}, folder)
    elif isinstance(source, FilesSource):
        copy_files(list_local_files(source.path, root), folder)
    elif isinstance(source, HuggingFaceSource):
        huggingface.download(name, source, revision, folder)
    else:
        kaggle.download(name, source, revision, folder)


def sample_file(name: str, source: AnySource, root: Path) -> Path:
    """Return the bundled sample of a source. Raises PipelineError where there is none."""
    if source.sample is None:
        raise PipelineError(
            f"sources.yaml: {name}: has no `sample`, but a recipe says `use_samples: true`. "
            "Declare a sample file, or set `use_samples: false` to download the source."
        )
    file = root / source.sample
    if not file.is_file():
        raise PipelineError(f"sources.yaml: {name}.sample: {file} does not exist.")
    return file


def _record(name: str, store: Path) -> Path:
    return store / "upstream" / f"{name}.json"
