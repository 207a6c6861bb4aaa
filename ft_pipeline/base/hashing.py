"""Hashes of JSON values and files, and the record of a file: its sha256 and size."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

META = "meta"  # files below it are listed, and are not content


class ManifestPart(BaseModel):
    """A frozen part of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FileEntry(ManifestPart):
    """One file of an artifact."""

    sha256: str
    bytes: int


def hash_json(value: Any) -> str:
    """32 hex characters of SHA-256 over canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
