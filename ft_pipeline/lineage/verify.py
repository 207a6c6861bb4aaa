"""Check a model against its manifest and receipt, link by link, back to the raw files.

Every hash is recomputed, without trusting any stamp: each file against its manifest, the data
version against the files, the fingerprint against the ingredients, the raw files against their
upstream revision; and every link against what its reader recorded. Shortened:

    verify(chain, found) → Verification(broken=(Broken("raw_trivia 0573557a40b4", "trivia.csv",
        expected="sha256 7e17…", found="sha256 91ab…"),), absent=("val_set 91ab…",), …)

Artifacts no longer stored are `absent`, not `broken`; the receipt's record of them is checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.hashing import (
    META,
    FileEntry,
    hash_file,
    hash_json,
)
from ft_pipeline.base.records import is_draft
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.lineage.origins import check_origin
from ft_pipeline.lineage.receipt import RECEIPT_FILE, Link, Receipt, make_link
from ft_pipeline.lineage.records import Found, read_found
from ft_pipeline.lineage.verdict import Broken, name_link
from ft_pipeline.store.artifacts import (
    FORMAT,
    MANIFEST,
    InputEntry,
    compute_data_version,
)
from ft_pipeline.store.store import STAMP, UNPUSHED, Store

NAMED = ("asset", "fingerprint", "data_version")
# What may differ after a rebuild that gave equal content.
REBUILT_OTHERWISE = {"created_at", "seconds", "run_id", "resolved", "inputs", "files"}


@dataclass(frozen=True)
class Verification:
    """The findings: broken links, what is not here, and how much was checked."""

    model: str
    broken: tuple[Broken, ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    artifacts: int
    files: int

    def as_record(self) -> dict[str, Any]:
        """Return the findings for JSON output."""
        return {
            "model": self.model,
            "verified": not self.broken,
            "broken": [vars(broken) for broken in self.broken],
            "not_here": list(self.absent),
            "notes": list(self.notes),
            "sources": list(self.sources),
            "artifacts": self.artifacts,
            "files": self.files,
        }


def verify(chain: Chain, found: Found) -> Verification:
    """Check an artifact and everything it was made from. Never raises for broken links."""
    return _Verifier(open_store(chain), found).run()


class _Verifier:
    def __init__(self, store: Store, found: Found) -> None:
        self._store, self._found = store, found
        self._broken: list[Broken] = []
        self._absent: list[str] = []
        self._notes: list[str] = []
        self._files = 0
        self._links: dict[tuple[str, str], Link | None] = {}
        receipt = found.receipt
        self._behind = {(x.asset, x.fingerprint): x for x in receipt.behind} if receipt else {}

    def run(self) -> Verification:
        found = self._found
        self._check_artifact(found)
        self._links[found.link.asset, found.link.fingerprint] = found.link
        self._check_inputs(found.link)
        if found.receipt is None:
            self._notes.append(f"{found.folder} has no {RECEIPT_FILE}")
        elif found.manifest is None:
            known = "content files" if found.receipt.files else "inputs"
            self._notes.append(f"{found.folder} has no {MANIFEST}; its receipt lists only {known}")
        else:
            self._check_receipt(found.receipt, make_link(found.manifest))
        if found.receipt is not None:
            self._check_behind(found.receipt)
        checked = [link for link in self._links.values() if link is not None]
        return Verification(
            name_link(found.link),
            tuple(dict.fromkeys(self._broken)),
            tuple(dict.fromkeys(self._absent)),
            tuple(self._notes),
            tuple(f"{x.asset} {x.revision}" for x in checked if x.revision and not x.inputs),
            len(checked),
            self._files,
        )

    def _check_artifact(self, found: Found) -> None:
        """Check files, data version, fingerprint and origin of one artifact."""
        link = found.link
        self._check_files(found)
        self._check_arithmetic(link, Path(found.folder.name) if found.stored else None)
        if found.manifest is not None:
            if found.manifest.format != FORMAT:
                self._break(link, "manifest format", str(FORMAT), str(found.manifest.format))
            self._broken += check_origin(found.folder, link)

    def _check_files(self, found: Found) -> None:
        link = found.link
        for name, expected in link.files.items():
            file = found.folder / name
            if not file.is_file():
                self._break(link, name, f"sha256 {expected}", "no file")
                continue
            self._files += 1
            sha256 = hash_file(file)
            if sha256 != expected:
                self._break(link, name, f"sha256 {expected}", f"sha256 {sha256}")
        for name in _list_unlisted(found):
            if found.stored:
                self._break(link, name, "only files that the manifest lists", "an unlisted file")
            else:
                self._notes.append(f"{name} is not listed")

    def _check_arithmetic(self, link: Link, folder: Path | None = None) -> None:
        """Check that a link's data version and fingerprint follow from what it lists."""
        if link.ingredients is None:
            return
        if link.data_version:
            files = {name: FileEntry(sha256=sha, bytes=0) for name, sha in link.files.items()}
            computed = compute_data_version(files)
            if computed != link.data_version:
                self._break(link, "data version", link.data_version, computed)
        if link.ingredients.fingerprint != link.fingerprint:
            computed = link.ingredients.fingerprint
            self._break(link, "fingerprint of the ingredients", link.fingerprint, computed)
        if folder is not None and folder.name != link.fingerprint:
            self._break(link, "folder", link.fingerprint, folder.name)
        for name, given in link.inputs.items():
            declared = link.ingredients.inputs.get(name, given.data_version)
            if declared != given.data_version:
                self._break(link, f"input {name}", f"data version {declared}", given.data_version)

    def _check_inputs(self, link: Link) -> None:
        """Check what an artifact was made from, back to the sources."""
        for name, given in link.inputs.items():
            behind = self._check_input(given)
            if behind is None:
                self._absent.append(name_link(given))
            elif behind.data_version != given.data_version:
                expected = f"{name_link(given)} with data version {given.data_version}"
                self._break(link, f"input {name}", expected, f"data version {behind.data_version}")

    def _check_input(self, given: InputEntry) -> Link | None:
        key = (given.asset, given.fingerprint)
        if key in self._links:
            return self._links[key] or self._behind.get(key)
        folder = self._store.folder(*key)
        if not (folder / MANIFEST).is_file():
            self._links[key] = None
            link = self._behind.get(key)
            if link is not None:
                self._absent.append(name_link(given))
                self._check_inputs(link)
            return link
        try:
            found = read_found(folder, stored=True)
        except PipelineError as error:
            self._links[key] = None
            self._broken.append(Broken(name_link(given), MANIFEST, "a valid manifest", str(error)))
            return Link(**given.model_dump())
        self._links[key] = found.link
        self._check_artifact(found)
        self._check_inputs(found.link)
        return found.link

    def _check_receipt(self, receipt: Receipt, model: Link) -> None:
        """Check the receipt's record of the model itself against its manifest."""
        listed = {n: sha for n, sha in model.files.items() if not n.startswith(f"{META}/")}
        expected = model.model_copy(update={"files": listed})
        self._compare(expected, receipt, {"created_at", "seconds", "run_id"})

    def _check_behind(self, receipt: Receipt) -> None:
        """Check the receipt's records of other artifacts: each in itself, and against the store."""
        for link in receipt.behind:
            self._check_arithmetic(link)
            if self._check_input(InputEntry(**link.model_dump(include=set(NAMED)))) is None:
                self._absent.append(name_link(link))
            stored = self._links.get((link.asset, link.fingerprint))
            if stored is None or link.ingredients is None:
                continue
            rebuilt = stored.created_at != link.created_at
            self._compare(stored, link, REBUILT_OTHERWISE if rebuilt else {"seconds"})

    def _compare(self, stored: Link, said: Link, skipped: set[str]) -> None:
        left_out = {"seeds", "software", "recipe", "behind"} | skipped
        one, two = (_dump(link, left_out) for link in (stored, said))
        for name in sorted(one.keys() | two.keys()):
            if name in two and one.get(name) != two[name]:
                self._break(
                    said,
                    f"{RECEIPT_FILE}, {name}",
                    _shorten(one.get(name)),
                    _shorten(two[name]),
                )

    def _break(self, link: Link, what: str, expected: str, found: str) -> None:
        self._broken.append(Broken(name_link(link), what, expected, found))


def _dump(link: Link, left_out: set[str]) -> dict[str, Any]:
    """Return the set fields of a link, for comparison."""
    return link.model_dump(mode="json", exclude=left_out, exclude_unset=True)


def _list_unlisted(found: Found) -> Iterator[str]:
    """Yield unlisted files of a folder; with only a receipt, just content files."""
    own = {MANIFEST, STAMP, UNPUSHED}
    for file in sorted(found.folder.rglob("*")):
        name = file.relative_to(found.folder).as_posix()
        known = name in own or name in found.link.files or is_draft(file, own)
        if file.is_file() and not known and (found.manifest or not name.startswith(f"{META}/")):
            yield name


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}… (hash {hash_json(value)})"
