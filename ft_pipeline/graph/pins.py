"""The outside revisions that a run looked up, kept until its end.

A run may train for hours while somebody drops a file, or an observation finds a newer commit. The
run keeps the revisions it began with; the next run takes the new ones.

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
        """Keep revisions that were looked up elsewhere."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(revisions)

    def take_over(self, earlier: Path, done: Collection[str]) -> None:
        """Take over the revisions of the run that this one continues, unless it has its own.

        Only for assets that it had `done`: a revision that failed to build, perhaps because the
        file has changed since, is looked up again.
        """
        if self._file.exists():
            return
        known = Pins(earlier)._read()
        with changing(self._file):
            if known and not self._file.exists():
                self._write({asset: kept for asset, kept in known.items() if asset in done})

    def _read(self) -> Kept:
        found = read_record(self._file, SHAPE, "the run looks up the revisions again")
        return dict(found or {})

    def _write(self, kept: Kept) -> None:
        # No run outlives a power cut, and what is lost is looked up again.
        write_atomically(self._file, json.dumps(kept, indent=1) + "\n", durable=False)
