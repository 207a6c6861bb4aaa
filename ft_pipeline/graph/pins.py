"""What a run looked up outside of the store, kept to its end.

A run may train for hours, and meanwhile somebody drops a file, or an observation finds a newer
commit. The run goes on with the revisions that it began with; the new ones are the next run's.

    <store>/pins/<run id>/revisions.json    {"raw_trivia": {"revision": "sha256:…"}, …}
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

REVISIONS_FILE = "revisions.json"


class Pins:
    """The revisions of one run, each looked up once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, Any]] = {}

    def keep(self, asset: str, look_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the run found for an asset; the first time, look it up."""
        if asset not in self._known:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder):
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
        known = Pins(earlier)._read()
        if known and not (self.folder / REVISIONS_FILE).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write({asset: kept for asset, kept in known.items() if asset in done})

    def _read(self) -> dict[str, dict[str, Any]]:
        file = self.folder / REVISIONS_FILE
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def _write(self, kept: dict[str, dict[str, Any]]) -> None:
        draft = self.folder / f".{REVISIONS_FILE}"
        draft.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        draft.rename(self.folder / REVISIONS_FILE)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
