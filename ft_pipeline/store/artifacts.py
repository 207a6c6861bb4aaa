"""Artifacts: what one asset produced, and what it was asked for.

A manifest, shortened:

    {"asset": "train_set", "fingerprint": "5d0c…", "data_version": "91ab…",
     "ingredients": {"code_version": "1", "settings": {}, "inputs": {"prompt_completions": "77e1…"},
                     "libraries": {"duckdb": "2.0"}},
     "files": {"train_set.jsonl": {"sha256": "c4…", "bytes": 81234}},
     "checks": [{"name": "no_empty_text", "passed": true, "blocking": true, …}], …}

The *fingerprint* is the hash of the ingredients (what was asked for), the *data version* the hash
of the content files (what came out). Files below `meta/` are listed but are not content.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter

from ft_pipeline.base.hashing import META, FileEntry, ManifestPart, hash_json
from ft_pipeline.base.libraries import find_version
from ft_pipeline.base.settings import list_leaves

MANIFEST = "manifest.json"
FORMAT = 1

Key = tuple[str, str]  # asset, fingerprint


class Ingredients(ManifestPart):
    """What was asked for: everything that decides an artifact's content."""

    code_version: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    libraries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """32 hex characters over the canonical JSON of the four ingredients."""
        return hash_json(self.model_dump(mode="json"))

    def differences(self, other: "Ingredients") -> list[str]:
        """List each ingredient that differs, from `other` (old) to this one (new)."""
        old, new = dict(list_leaves(other.model_dump())), dict(list_leaves(self.model_dump()))
        return [
            _describe_change(path, old.get(path), new.get(path))
            for path in sorted(old.keys() | new.keys())
            if old.get(path) != new.get(path)
        ]


class CheckResult(ManifestPart):
    """The stored outcome of one check."""

    name: str
    version: str
    passed: bool
    blocking: bool
    message: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class InputEntry(ManifestPart):
    """Which artifact was read."""

    asset: str
    fingerprint: str
    data_version: str

    @property
    def key(self) -> Key:
        return self.asset, self.fingerprint


class Manifest(ManifestPart):
    """Everything known about one artifact; written last."""

    format: int = FORMAT
    asset: str
    fingerprint: str
    data_version: str
    ingredients: Ingredients
    inputs: dict[str, InputEntry]
    files: dict[str, FileEntry]
    checks: list[CheckResult]
    metadata: dict[str, Any]
    resolved: dict[str, Any]
    created_at: str
    seconds: float
    run_id: str

    @property
    def key(self) -> Key:
        return self.asset, self.fingerprint

    @property
    def name(self) -> str:
        """The asset's name without the recipe: `finetuned_model` for foo/finetuned_model."""
        return name_of(self.asset)


MANIFEST_SHAPE = TypeAdapter(Manifest)


class Artifact(ManifestPart):
    """A complete artifact in the local store."""

    path: Path
    manifest: Manifest

    @property
    def data_version(self) -> str:
        return self.manifest.data_version

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())

    @property
    def content(self) -> dict[str, Path]:
        """The content files, those outside `meta/`, by name."""
        names = (name for name in self.manifest.files if not name.startswith(f"{META}/"))
        return {name: self.path / name for name in names}

    @property
    def failed_checks(self) -> list[CheckResult]:
        """The blocking checks that failed; with any of them, it is not a usable input."""
        return [c for c in self.manifest.checks if c.blocking and not c.passed]

    def read_json(self, name: str) -> Any:
        """Parse one of the artifact's JSON files; `name` is relative to it."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def name_of(asset: str) -> str:
    """Return an asset's name without its recipe."""
    return asset.rpartition("/")[2]


def recipe_of(asset: str) -> str:
    """Return the recipe in an asset's key; "" for the default recipe and shared assets."""
    return asset.rpartition("/")[0]


def compute_data_version(files: Mapping[str, FileEntry]) -> str:
    """Hash the names and sha256 of the content files, those outside `meta/`."""
    return hash_json({n: f.sha256 for n, f in files.items() if not n.startswith(f"{META}/")})


@cache
def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return major.minor of each installed distribution, or "absent"."""
    return {name: ".".join(find_version(name).split(".")[:2]) for name in names}


def _describe_change(path: str, old: Any, new: Any) -> str:
    kind, _, name = path.partition(".")
    if kind == "inputs":
        return f"content of input {name} changed"
    label = {"settings": f"setting {name}", "libraries": f"library {name}"}.get(
        kind, "code version"
    )
    return f"{label}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
