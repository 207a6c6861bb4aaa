"""Whether content from outside (raw files, hub models) has the requested revision.

A revision that is a hash of local files (or of dropped ones) is recomputed. A Kaggle version, a hub
commit or an ETag cannot be; the record of the download must name the same one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft_pipeline.base.hashing import (
    META,
    hash_file,
    hash_json,
)
from ft_pipeline.lineage.receipt import Link
from ft_pipeline.lineage.verdict import Broken, name_link
from ft_pipeline.sources.incoming import PREFIX, split_revision
from ft_pipeline.sources.remote_files import is_remote
from ft_pipeline.store.artifact_files import BASE_FILE, SOURCE_FILE


def check_origin(folder: Path, link: Link) -> Iterator[Broken]:
    """Yield where an artifact from outside does not match its revision."""
    for name, check in ((SOURCE_FILE, _check_source), (BASE_FILE, _check_hub_files)):
        if (folder / name).is_file():
            try:
                yield from check(folder, link)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                yield Broken(name_link(link), name, "a readable record", f"{error!r}")
            return


def _check_source(folder: Path, link: Link) -> Iterator[Broken]:
    record = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    if record.get("revision") != link.revision:
        found = str(record.get("revision"))
        yield Broken(name_link(link), f"{SOURCE_FILE}, revision", str(link.revision), found)
    for name, entry in record.get("files", {}).items():
        if link.files.get(name) != entry["sha256"]:
            expected, found = f"sha256 {entry['sha256']}", str(link.files.get(name, "no file"))
            yield Broken(name_link(link), f"{name} as fetched", expected, found)
    yield from _check_local_revision(link)


def _check_local_revision(link: Link) -> Iterator[Broken]:
    """Recompute the revision of local files: of one sample, or of all files by name."""
    upstream, incoming = split_revision(str(link.revision))
    # As listed: a file that is not what is listed is a broken link of its own.
    own = {n: sha256 for n, sha256 in link.files.items() if not n.startswith(f"{META}/")}
    dropped: dict[str, str] = {}
    if incoming is not None:
        tops = {n.split("/")[0] for n in own if "/" in n}
        top = max((t for t in tops if t.rstrip("_") == PREFIX), default=PREFIX)
        dropped = {n: own.pop(n) for n in list(own) if n.startswith(f"{top}/")}
        found = hash_json({n.removeprefix(f"{top}/"): sha for n, sha in dropped.items()})
        if found != incoming:
            yield Broken(name_link(link), "revision of the dropped files", incoming, found)
    settings = link.ingredients.settings if link.ingredients else {}
    if "sample" in settings:
        computed = f"sha256:{next(iter(own.values()), 'no file')}"
    elif settings.get("kind") == "files" and not is_remote(settings["path"]):
        computed = f"sha256:{hash_json(own)}"
    else:
        return
    if computed != upstream:
        yield Broken(name_link(link), "upstream revision", upstream, computed)


def _check_hub_files(folder: Path, link: Link) -> Iterator[Broken]:
    """Hash the files of a hub model that are in this machine's Hugging Face cache."""
    base: dict[str, Any] = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
    if base["weights"] != "cache":
        return
    if base["revision"] != link.revision:
        commit = f"commit {base['revision']}"
        yield Broken(name_link(link), f"{BASE_FILE}, revision", str(link.revision), commit)
    from huggingface_hub import try_to_load_from_cache

    for name, expected in base["files"].items():
        cached = try_to_load_from_cache(base["id"], name, revision=base["revision"])
        if isinstance(cached, str) and (found := hash_file(Path(cached))) != expected:
            where = f"{name} in the Hugging Face cache"
            yield Broken(name_link(link), where, f"sha256 {expected}", f"sha256 {found}")
