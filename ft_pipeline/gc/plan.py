"""What the store has and nobody needs: listed with the reason, removed on request.

    plan_removal(chains, keep=1) → [
        Item("artifact", "train_set", "91ab…", …, goes=False, why="recipe quiz needs it"),
        Item("artifact", "train_set", "0c2f…", …, goes=True, why="no recipe needs it"), …]

An item is removed under the lock of its fingerprint, renamed first, and only if it has not changed
since it was listed. What an active run has built or reused stays until the run ends.
"""

import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.locks import is_held, try_lock
from ft_pipeline.gc.inventory import (
    GONE_MARK,
    Item,
    go,
    list_artifacts,
    list_checkpoints,
    list_leftovers,
    list_logs,
    list_rows,
    read_manifests,
    stay,
)
from ft_pipeline.gc.promotions import read_promoted
from ft_pipeline.graph.asset_rules import EXAMPLES, TEACHER_LOGITS
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import Lookup, MissingInputs, open_store
from ft_pipeline.store.artifact_files import LOGITS_CACHE, MINHASH_CACHE
from ft_pipeline.store.artifacts import MANIFEST, Key, Manifest
from ft_pipeline.store.manifest_graph import build_graph
from ft_pipeline.store.remote import RemoteError
from ft_pipeline.store.row_cache import RowCache
from ft_pipeline.store.store import REPLACED_MARK, RUN_MARK, DamagedArtifact, Store

LOG_DAYS = 14.0
# Which asset's builds append to each kind of row cache.
CACHED_BY = {MINHASH_CACHE: EXAMPLES.name, LOGITS_CACHE: TEACHER_LOGITS.name}


def plan_removal(chains: Sequence[Chain], keep: int, recipe: str | None = None) -> list[Item]:
    """Say whether each item in the store goes, and why; `recipe` limits what goes to that recipe.

    `chains` are those of all recipes: what any of them needs stays, with everything it was made
    from, and so do the newest `keep` other artifacts of each asset. Raises PipelineError if an
    artifact that a recipe needs is damaged, because what it needs in turn is then unknown.
    """
    store = open_store(chains[0])
    items = list_artifacts(store)
    manifests = read_manifests(store, items)
    reasons = _find_reasons(chains, manifests, items, keep)
    asked = find_asked(chains)
    since = find_oldest_run(store)
    found = [_judge_artifact(item, manifests, reasons) for item in items]
    found += [_judge_leftover(item, store) for item in list_leftovers(store)]
    found += [_judge_checkpoints(item, store, asked) for item in list_checkpoints(store)]
    if recipe is not None:
        (chain,) = (chain for chain in chains if chain.name == recipe)
        own = {chain.asset(name) for name in chain.names}
        return [i if i.asset in own else stay(i, f"not from recipe {recipe}") for i in found]
    found += [_judge_log(item, since) for item in list_logs(store)]
    kept = [manifests[i.key] for i in found if not i.goes and i.key in manifests]
    return found + [_judge_rows(item, kept) for item in list_rows(store)]


def remove(store: Store, items: Iterable[Item]) -> list[Item]:
    """Remove what goes; return what was not removed after all, with why."""
    kept = []
    for item in items:
        if item.goes:
            refused = _remove_one(store, item)
            if refused:
                kept.append(stay(item, refused))
    for mark in (store.root / "locks").glob(f"{RUN_MARK}*"):
        if not is_held(mark):  # of a run that was killed; one that begins appears locked
            mark.unlink(missing_ok=True)
    return kept


def find_asked(chains: Sequence[Chain]) -> dict[Key, str]:
    """Return what the current recipes need, built or not, with the recipe that needs it.

    If that is unknown, because a local file is missing just now, all artifacts of the asset count
    as needed. Raises PipelineError if something needed is damaged, or is not here and the remote
    cannot be reached: what it was made from, or what was made from it, would otherwise seem
    unneeded.
    """
    asked: dict[Key, str] = {}
    unknown: dict[Key, str] = {}
    for chain in chains:
        lookup = Lookup(chain)
        for name in chain.names:
            try:
                request = lookup.state(name).require_request()
            except (DamagedArtifact, RemoteError) as error:
                raise PipelineError(
                    f"gc: {error} Until this is fixed, gc cannot tell what is needed; nothing was "
                    "removed."
                ) from error
            except PipelineError as error:
                # Inputs that are not built: then nothing here can be what is asked for.
                unread = error.unreadable if isinstance(error, MissingInputs) else (str(error),)
                for why in unread:
                    reason = f"cannot tell what recipe {chain.name} needs: {why}"
                    unknown |= dict.fromkeys(list_keys(chain, name), reason)
                continue
            key = (request.asset, request.fingerprint)
            asked.setdefault(key, f"recipe {chain.name} needs it")
    return unknown | asked


def list_keys(chain: Chain, name: str) -> list[Key]:
    """Return everything the store has of an asset: artifacts, and checkpoints of trainings."""
    asset, root = chain.asset(name), chain.project.store
    folders = [*(root / asset).glob("*"), *(root / "checkpoints" / asset).glob("*")]
    return [(asset, folder.name) for folder in folders]


def find_oldest_run(store: Store) -> float | None:
    """Return when the oldest active run began, or None if there is none."""
    marks = (store.root / "locks").glob(f"{RUN_MARK}*")
    began = [file.stat().st_mtime for file in marks if is_held(file)]
    return min(began, default=None)


def _find_reasons(
    chains: Sequence[Chain], manifests: Mapping[Key, Manifest], items: Sequence[Item], keep: int
) -> dict[Key, str]:
    store = open_store(chains[0])
    reasons = dict(find_asked(chains))
    promoted = read_promoted(store)
    reasons |= {k: "promoted" for k in manifests if k[1] in promoted}
    for asset in sorted({asset for asset, _ in manifests}):
        others = [m for k, m in manifests.items() if k[0] == asset and k not in reasons]
        newest = sorted(others, key=lambda m: m.created_at, reverse=True)[:keep]
        reasons |= {
            (asset, m.fingerprint): f"among the newest {keep} unneeded ones" for m in newest
        }
    for item in items:
        if item.key not in reasons and is_held(store.lock_file(*item.key)):
            reasons[item.key] = "being built"
    since = find_oldest_run(store)
    if since is not None:
        used = {item.key: "a current run uses it" for item in items if item.used_at >= since}
        reasons = used | reasons
    for visit in build_graph(dict(manifests)).walk_behind(list(reasons)):
        if visit.by is not None:
            asset, fingerprint = visit.by.key
            reasons.setdefault(visit.key, f"{asset} {fingerprint[:8]} was made from it")
    return reasons


def _judge_artifact(
    item: Item, manifests: Mapping[Key, Manifest], reasons: Mapping[Key, str]
) -> Item:
    if item.key in reasons:
        return stay(item, reasons[item.key])
    if item.key not in manifests:
        return stay(item, "its manifest cannot be read; if you do not need it, remove it by hand")
    return go(item, "no recipe needs it")


def _judge_leftover(item: Item, store: Store) -> Item:
    if is_held(store.lock_file(*item.key)):
        return stay(item, "being built")
    final = store.folder(*item.key)
    if REPLACED_MARK in item.path.name and not final.exists():
        return stay(item, "the only copy; the next run puts it back")
    return go(item, "left by a killed process")


def _judge_checkpoints(item: Item, store: Store, asked: Mapping[Key, str]) -> Item:
    if is_held(store.lock_file(*item.key)):
        return stay(item, "being trained")
    if (
        item.path.name == item.fingerprint
        and item.key in asked
        and not store.folder(*item.key).exists()
    ):
        return stay(item, f"{asked[item.key]}; the next run continues from it")
    return go(item, "no recipe needs the model it belongs to")


def _judge_log(item: Item, since: float | None) -> Item:
    if since is not None and item.used_at >= since:
        return stay(item, "a run is active")
    if item.age_days < LOG_DAYS:
        return stay(item, f"younger than {LOG_DAYS:g} days")
    return go(item, f"older than {LOG_DAYS:g} days")


def _judge_rows(item: Item, kept: Iterable[Manifest]) -> Item:
    """A configuration goes if no remaining build can have used it: all began after its last use.

    If no build remains, recently used rows may belong to a killed build.
    """
    maker = CACHED_BY.get(item.asset, "")
    began = [_began(m) for m in kept if m.name == maker]
    if item.used_at >= min(began, default=time.time() - LOG_DAYS * 86400):
        return stay(item, "used since the oldest remaining build" if began else "used lately")
    return go(item, f"no remaining {maker} has used it")


def _began(manifest: Manifest) -> float:
    # created_at has whole seconds.
    return datetime.fromisoformat(manifest.created_at).timestamp() - manifest.seconds - 1


def _remove_one(store: Store, item: Item) -> str | None:
    """Remove one item; return why not, if it has changed since it was listed."""
    if item.kind == "log":
        shutil.rmtree(item.path, ignore_errors=True)
        return None
    if item.kind == "rows":
        return remove_rows(item.path)
    with try_lock(store.lock_file(*item.key), create=True) as free:
        if not free:
            return "being built meanwhile"
        return _remove_folder(item)


def _remove_folder(item: Item) -> str | None:
    watched = item.path / MANIFEST if item.kind == "artifact" else item.path
    gone = item.path.with_name(f"{item.fingerprint}{GONE_MARK}{uuid.uuid4().hex[:8]}")
    try:
        if watched.stat().st_mtime != item.used_at:
            return "used meanwhile"
        item.path.rename(gone)
    except FileNotFoundError:
        return None  # another process removed it
    if item.kind == "artifact" and (gone / MANIFEST).stat().st_mtime != item.used_at:
        shutil.rmtree(item.path, ignore_errors=True)  # a reader's stamps; the lock is ours
        gone.rename(item.path)  # noted as used between the two lines above
        return "used meanwhile"
    shutil.rmtree(gone, ignore_errors=True)
    return None


def remove_rows(folder: Path) -> str | None:
    """Remove the shards of one configuration under its lock; others may wait on the lock file.

    Returns why not, if a build holds the lock.
    """
    cache = RowCache(folder)
    with cache.try_locked() as free:
        if not free:
            return "in use"
        cache.clear()
    return None
