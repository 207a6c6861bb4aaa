"""What still holds rows of data/forget.txt, for `ft-pipeline gc --forgotten`.

A build of the examples holds a row that its `meta/rows.parquet` lists. So does all that was made of
that build, as far as it saw the row's side. The raw artifact that a recipe asks for is the file as
it was fetched, and stays until the row is gone upstream.
"""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.locks import is_held, try_lock
from ft_pipeline.examples.read.database import quote
from ft_pipeline.examples.render.outputs import REJECTED_FILE, ROWS_FILE
from ft_pipeline.examples.select.forget import FORGET_FILE, read_forgotten
from ft_pipeline.gc.inventory import (
    Item,
    Key,
    go,
    list_artifacts,
    list_checkpoints,
    list_leftovers,
    list_logs,
    list_rows,
    read_manifests,
    stay,
)
from ft_pipeline.gc.plan import find_asked, find_oldest_run, remove
from ft_pipeline.graph.chain import Chain
from ft_pipeline.lineage.graph import UNTRACEABLE, read_graph
from ft_pipeline.lineage.trace import EXAMPLES_ASSET, SIDE_ASSETS
from ft_pipeline.store.artifacts import Manifest
from ft_pipeline.store.row_cache import read_table, write_shard
from ft_pipeline.store.store import Store

TEACHER_ASSET = "teacher_logits"
EXAMPLES_TABLE, POSITIONS_TABLE = "examples", "positions"


def plan_purge(chains: Sequence[Chain]) -> list[Item]:
    """Say of everything that holds a forgotten row whether it goes, and why not.

    Raises PipelineError where nothing is forgotten, or a recipe's artifact is damaged.
    """
    store = chains[0].store
    forgotten = read_forgotten(chains[0].project.root)
    if not forgotten:
        raise PipelineError(
            f"gc --forgotten: {FORGET_FILE} names no row. `ft-pipeline forget --match TEXT` does."
        )
    items = list_artifacts(store)
    manifests = read_manifests(store, items)
    holders, sources = find_holders(store, manifests, forgotten)
    asked, since = find_asked(chains), find_oldest_run(store)
    found = [_judge(item, holders[item.key], store, since) for item in items if item.key in holders]
    found += [_judge_raw(item, asked) for item in items if _source_of(item) in sources]
    alone = {(m.asset, m.fingerprint) for m in read_graph(store).list_untraceable()}
    found += [stay(item, UNTRACEABLE) for item in items if item.key in alone - holders.keys()]
    going = {item.fingerprint for item in found if item.goes}
    for leftover in list_leftovers(store):
        held = is_held(store.lock_file(*leftover.key))
        found.append(stay(leftover, "being built") if held else go(leftover, "may hold it"))
    for item in list_checkpoints(store):
        held = is_held(store.lock_file(*item.key)) or item.key in asked
        found.append(stay(item, "being trained") if held else go(item, "may have seen it"))
    found += [go(item, "of a build that goes") for item in list_logs(store) if _tells(item, going)]
    return found + [go(item, _explain_rows(item)) for item in list_rows(store)]


def purge(store: Store, items: Sequence[Item]) -> list[Item]:
    """Remove what goes; return what was not removed after all, with why."""
    kept = remove(store, (item for item in items if not _is_compacted(item)))
    manifests = read_manifests(store, list_artifacts(store))
    for item in items:
        if _is_compacted(item):
            refused = compact_rows(item.path, _collect_keys(store, manifests))
            kept += [stay(item, refused)] if refused else []
    return kept


def list_pushed(store: Store, items: Iterable[Item]) -> list[str]:
    """Return the addresses of those artifacts that go and that the remote has, too.

    Raises RemoteError where it cannot be asked.
    """
    remote = store.remote
    if remote is None:
        return []
    return [
        f"{remote.shown}/{item.asset}/{item.fingerprint}"
        for item in items
        if item.goes and item.kind == "artifact" and remote.read_manifest(*item.key) is not None
    ]


def find_holders(
    store: Store, manifests: Mapping[Key, Manifest], forgotten: Sequence[str]
) -> tuple[dict[Key, str], set[str]]:
    """Return the artifacts that hold a forgotten row, with why; and the sources of those rows."""
    holders: dict[Key, str] = {}
    seen: dict[Key, set[str]] = {}  # of builds of the examples: the sides that have such a row
    sources: set[str] = set()
    for key in manifests:
        if _plain(key[0]) == EXAMPLES_ASSET:
            used, rejected = _find_rows(store.folder(*key), forgotten)
            sources |= {source for _, _, source in used} | {source for _, source in rejected}
            if used or any(reason != "forgotten" for reason, _ in rejected):
                holders[key] = f"{len({row for row, _, _ in used})} forgotten rows are in it"
                seen[key] = {side for _, side, _ in used}
    waiting = list(holders)
    while waiting:
        current = waiting.pop()
        for key, manifest in manifests.items():
            given = {(i.asset, i.fingerprint) for i in manifest.inputs.values()}
            if current not in given or key in holders:
                continue
            side = SIDE_ASSETS.get(_plain(key[0]))
            if side is None or current not in seen or side in seen[current]:
                holders[key] = f"made of {current[0]} {current[1][:8]}"
                waiting.append(key)
    return holders, sources


def compact_rows(folder: Path, wanted: Collection[bytes]) -> str | None:
    """Keep the teacher's answers to these examples (16-byte keys) alone.

    Returns why not, where a build holds the cache's lock.
    """
    with try_lock(folder / "lock", create=True) as free:
        if not free:
            return "in use"
        for shard in sorted(folder.glob("[0-9]*")):
            _compact_shard(shard, pa.array(sorted(wanted), pa.binary(16)))
    return None


def _compact_shard(shard: Path, wanted: pa.Array) -> None:
    examples = read_table(shard / f"{EXAMPLES_TABLE}.arrow")
    positions = read_table(shard / f"{POSITIONS_TABLE}.arrow")
    if examples is None or positions is None:
        shutil.rmtree(shard)
        return
    keep = np.asarray(pc.is_in(examples["key"], value_set=wanted).to_pylist(), bool)
    if keep.all():
        return
    if keep.any():
        whose = np.repeat(keep, examples["positions"].to_numpy())
        tables = {
            EXAMPLES_TABLE: examples.filter(pa.array(keep)),
            POSITIONS_TABLE: positions.filter(pa.array(whose)),
        }
        write_shard(shard.parent, tables)
    shutil.rmtree(shard)


def _read(file: Path) -> pa.Table:
    with pa.ipc.open_file(pa.memory_map(str(file))) as reader:
        return reader.read_all()


def _find_rows(
    folder: Path, forgotten: Sequence[str]
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return (row_id, side, source) of used rows, and (reason, source) of rejected ones."""
    used = duckdb.execute(
        f"SELECT row_id, side, source FROM read_parquet({quote(str(folder / ROWS_FILE))}) "
        "WHERE list_contains($1, row_id)",
        [list(forgotten)],
    ).fetchall()
    file = folder / REJECTED_FILE
    if not file.stat().st_size:
        return used, []
    rejected = duckdb.execute(
        f"SELECT reason, source FROM read_json({quote(str(file))}, format = 'newline_delimited', "
        "columns = {row_id: 'VARCHAR', reason: 'VARCHAR', source: 'VARCHAR'}) "
        "WHERE list_contains($1, row_id)",
        [list(forgotten)],
    ).fetchall()
    return used, rejected


def _judge(item: Item, why: str, store: Store, since: float | None) -> Item:
    if is_held(store.lock_file(*item.key)) or (since is not None and item.used_at >= since):
        return stay(item, f"{why}, but a run that is going on uses it; repeat this afterwards")
    return go(item, why)


def _judge_raw(item: Item, asked: Mapping[Key, str]) -> Item:
    if item.key in asked:
        return stay(
            item,
            "the file as it was fetched, which still holds the row: remove it upstream, then "
            "ft-pipeline refresh and ft-pipeline run",
        )
    return go(item, "an older file of a source that had a forgotten row")


def _source_of(item: Item) -> str | None:
    name = item.asset.removesuffix("_sample").removesuffix("_full")
    return name.removeprefix("raw_") if name.startswith("raw_") else None


def _tells(item: Item, going: Iterable[str]) -> bool:
    """Whether a worker's folder is of a build that goes, or has what was repeated by hand."""
    config = item.path / "config.json"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    return (item.path / "output").exists() or any(fingerprint in text for fingerprint in going)


def _is_compacted(item: Item) -> bool:
    return item.kind == "rows" and item.asset == TEACHER_ASSET


def _explain_rows(item: Item) -> str:
    if _is_compacted(item):
        return "answers to examples that are in no teacher_logits that stays"
    return "hashes of the words of every question so far; computed again by the next build"


def _collect_keys(store: Store, manifests: Mapping[Key, Manifest]) -> set[bytes]:
    found: set[bytes] = set()
    for key in manifests:
        if _plain(key[0]) == TEACHER_ASSET:
            found |= set(_read(store.folder(*key) / "examples.arrow")["key"].to_pylist())
    return found


def _plain(asset: str) -> str:
    return asset.rpartition("/")[2]
