"""Find what still holds rows of data/forget.txt, for `ft-pipeline gc --forgotten`.

A build of the examples holds the rows that its `meta/rows.parquet` lists. So does everything made
from that build, if it saw the row's split. The current raw artifact is the original file; it stays
until the row is gone upstream.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.base.arrow_files import map_table
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.locks import is_held
from ft_pipeline.examples.read.database import quote
from ft_pipeline.examples.select.forget import FORGET_FILE, read_forgotten
from ft_pipeline.gc.inventory import (
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
from ft_pipeline.gc.plan import find_asked, find_oldest_run, remove
from ft_pipeline.graph.asset_rules import EXAMPLES, TEACHER_LOGITS
from ft_pipeline.graph.chain import Chain
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.lineage.built_from import UNTRACEABLE, follow, list_untraceable
from ft_pipeline.process.tasks import TASK_FILE
from ft_pipeline.store.artifact_files import (
    EXAMPLES_TABLE,
    LOGITS_CACHE,
    LOGITS_EXAMPLES_FILE,
    POSITIONS_TABLE,
    REJECTED_FILE,
    ROWS_FILE,
)
from ft_pipeline.store.artifacts import Key, Manifest, name_of
from ft_pipeline.store.manifest_graph import build_graph, read_graph
from ft_pipeline.store.row_cache import RowCache
from ft_pipeline.store.store import Store


def plan_purge(chains: Sequence[Chain]) -> list[Item]:
    """Say whether each item that holds a forgotten row goes, and why not.

    Raises PipelineError if nothing is forgotten, or a recipe's artifact is damaged.
    """
    store = open_store(chains[0])
    forgotten = read_forgotten(chains[0].project.root)
    if not forgotten:
        raise PipelineError(
            f"gc --forgotten: {FORGET_FILE} lists no rows. Add some with `ft-pipeline forget "
            "--match TEXT --yes`."
        )
    items = list_artifacts(store)
    manifests = read_manifests(store, items)
    holders, sources = find_holders(store, manifests, forgotten)
    asked, since = find_asked(chains), find_oldest_run(store)
    found = [_judge(item, holders[item.key], store, since) for item in items if item.key in holders]
    found += [_judge_raw(item, asked) for item in items if _source_of(item) in sources]
    alone = {manifest.key for manifest in list_untraceable(read_graph(store))}
    found += [stay(item, UNTRACEABLE) for item in items if item.key in alone - holders.keys()]
    going = {item.fingerprint for item in found if item.goes}
    for leftover in list_leftovers(store):
        held = is_held(store.lock_file(*leftover.key))
        found.append(stay(leftover, "being built") if held else go(leftover, "may hold it"))
    for item in list_checkpoints(store):
        held = is_held(store.lock_file(*item.key)) or item.key in asked
        found.append(stay(item, "being trained") if held else go(item, "may have seen it"))
    found += [
        go(item, "log of a build that goes") for item in list_logs(store) if _tells(item, going)
    ]
    return found + [go(item, _explain_rows(item)) for item in list_rows(store)]


def purge(store: Store, items: Sequence[Item]) -> list[Item]:
    """Remove what goes; return what was not removed after all, with the reason."""
    kept = remove(store, (item for item in items if not _is_compacted(item)))
    manifests = read_manifests(store, list_artifacts(store))
    for item in items:
        if _is_compacted(item):
            refused = compact_rows(item.path, _collect_keys(store, manifests))
            kept += [stay(item, refused)] if refused else []
    return kept


def list_pushed(store: Store, items: Iterable[Item]) -> list[str]:
    """Return the remote addresses of artifacts that go.

    Raises RemoteError if the remote cannot be reached.
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
    """Return the artifacts that hold forgotten rows, with the reason, and these rows' sources."""
    graph = build_graph(dict(manifests))
    holders: dict[Key, str] = {}
    sources: set[str] = set()
    for build in graph.of(EXAMPLES.name):
        used, rejected = _find_rows(store.folder(*build.key), forgotten)
        sources |= {source for _, _, source in used} | {source for _, source in rejected}
        if used or any(reason != "forgotten" for reason, _ in rejected):
            holders[build.key] = f"holds {len({row for row, _, _ in used})} forgotten rows"
        for split in sorted({split for _, split, _ in used}):
            for reached in follow(graph, build, split):
                made_of = f"made from {build.asset} {build.fingerprint[:8]}"
                holders.setdefault(reached.key, made_of)
    return holders, sources


def compact_rows(folder: Path, wanted: Collection[bytes]) -> str | None:
    """Keep only the teacher's answers to these examples (16-byte keys).

    Returns why not, if a build holds the cache's lock.
    """
    cache, keys = RowCache(folder), pa.array(sorted(wanted), pa.binary(16))
    with cache.try_locked() as free:
        if not free:
            return "in use"
        cache.compact(lambda tables: _keep_answers(tables, keys), (EXAMPLES_TABLE, POSITIONS_TABLE))
    return None


def _keep_answers(tables: Mapping[str, pa.Table], wanted: pa.Array) -> dict[str, pa.Table]:
    """Return the examples with these keys, and their runs of positions."""
    examples = tables[EXAMPLES_TABLE]
    stays = np.asarray(pc.is_in(examples["key"], value_set=wanted).to_pylist(), bool)
    whose = np.repeat(stays, examples["positions"].to_numpy())
    return {
        EXAMPLES_TABLE: examples.filter(pa.array(stays)),
        POSITIONS_TABLE: tables[POSITIONS_TABLE].filter(pa.array(whose)),
    }


def _find_rows(
    folder: Path, forgotten: Sequence[str]
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Return (row_id, split, source) of used rows, and (reason, source) of rejected ones."""
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
        return stay(item, f"{why}, but a current run uses it; repeat this command after that run")
    return go(item, why)


def _judge_raw(item: Item, asked: Mapping[Key, str]) -> Item:
    if item.key in asked:
        return stay(
            item,
            "the original file, which still holds the row: remove the row upstream, then run "
            "ft-pipeline refresh and ft-pipeline run",
        )
    return go(item, "an older file of a source with a forgotten row")


def _source_of(item: Item) -> str | None:
    name = item.asset.removesuffix("_sample").removesuffix("_full")
    return name.removeprefix("raw_") if name.startswith("raw_") else None


def _tells(item: Item, going: Iterable[str]) -> bool:
    """Whether a worker's folder belongs to a build that goes, or holds output of a replay."""
    config = item.path / TASK_FILE
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    return (item.path / "output").exists() or any(fingerprint in text for fingerprint in going)


def _is_compacted(item: Item) -> bool:
    return item.kind == "rows" and item.asset == LOGITS_CACHE


def _explain_rows(item: Item) -> str:
    if _is_compacted(item):
        return "answers to examples that no remaining teacher_logits needs"
    return "hashes of the words in every question; the next build recomputes them"


def _collect_keys(store: Store, manifests: Mapping[Key, Manifest]) -> set[bytes]:
    found: set[bytes] = set()
    for key in manifests:
        if name_of(key[0]) == TEACHER_LOGITS.name:
            found |= set(map_table(store.folder(*key) / LOGITS_EXAMPLES_FILE)["key"].to_pylist())
    return found
