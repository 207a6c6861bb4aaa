"""What a run looked up outside of the store, kept to its end.

A run may train for hours, and meanwhile somebody drops a file, or an observation finds a newer
commit. The run goes on with the revisions that it began with; the new ones are the next run's.

    <store>/pins/<run id>/revisions.json    {"raw_trivia": {"revision": "sha256:…"}, …}
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ft_pipeline.base.records import changing, read_record, write_atomically

REVISIONS_FILE = "revisions.json"
SHAPE = TypeAdapter(dict[str, dict[str, str | dict[str, str]]])

Kept = dict[str, dict[str, Any]]


class Pins:
    """The revisions of one run, each looked up once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / REVISIONS_FILE
        self._known: Kept = {}

    def keep(self, asset: str, look_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the run found for an asset; the first time, look it up."""
        if asset not in self._known:
            with changing(self._file):
                kept = self._read()
                if asset not in kept:
                    kept[asset] = look_up()
                    self._write(kept)
                self._known = kept
        return self._known[asset]

    def set(self, revisions: dict[str, dict[str, Any]]) -> None:
        """Have revisions kept that nobody has looked up here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(revisions)

    def take_over(self, earlier: Path, done: Collection[str]) -> None:
        """Go on with the revisions of a run that this one continues, unless it has its own.

        Of the assets that it had `done` alone: what it failed to make of a revision, perhaps
        because the file has changed meanwhile, is looked up anew.
        """
        if self._file.exists():
            return
        known = Pins(earlier)._read()
        with changing(self._file):
            if known and not self._file.exists():
                self._write({asset: kept for asset, kept in known.items() if asset in done})

    def _read(self) -> Kept:
        found = read_record(self._file, SHAPE, "the run looks up again what it is to build")
        return dict(found or {})

    def _write(self, kept: Kept) -> None:
        # No run outlives a power cut, and what is lost is looked up again.
        write_atomically(self._file, json.dumps(kept, indent=1) + "\n", durable=False)
