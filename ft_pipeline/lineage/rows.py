"""From a row to everything that saw it, in every recipe of the store.

It reads manifests, the Parquet files of `prompt_completions`, and the tables of teacher logits.
Shortened:

    trace_row(chain, "5f0a…") → [{"asset": "prompt_completions", "fingerprint": "8d2e…",
        "current": True, "used": True,
        "place": {"source": "trivia", "file": "trivia.csv", "line": 12, "side": "train"},
        "examples": [{"example_id": "77e1…", "task": "quiz_set", "side": "train", …}],
        "built_from_it": [{"asset": "finetuned_model", "fingerprint": "91ab…", "current": True,
                           "examples": {"77e1…": {"tokens": 93, "trained": 12}}}, …]}]
"""

import contextlib
import json
import mmap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.base.arrow_files import map_table
from ft_pipeline.base.errors import PipelineError
from ft_pipeline.base.project import DEFAULT_RECIPE
from ft_pipeline.config.recipe import list_recipes
from ft_pipeline.examples.read.database import quote
from ft_pipeline.graph.asset_rules import EXAMPLES, find_rule
from ft_pipeline.graph.chain import Chain, load_other
from ft_pipeline.graph.lookup import open_store
from ft_pipeline.graph.plan import make_plan
from ft_pipeline.lineage import built_from
from ft_pipeline.lineage.built_from import follow, is_model, keeps_rows
from ft_pipeline.store.artifact_files import (
    EXAMPLES_FILE,
    EXAMPLES_TABLE,
    IGNORED,
    LOGITS_CACHE,
    LOGITS_EXAMPLES_FILE,
    REJECTED_FILE,
    ROWS_FILE,
    TOKENS_FILE,
)
from ft_pipeline.store.artifacts import Key, Manifest, recipe_of
from ft_pipeline.store.manifest_graph import ManifestGraph, read_graph
from ft_pipeline.store.row_cache import list_caches
from ft_pipeline.store.store import Store

# Bytes of tokens that are read through for an example; they have no order to search by.
LARGEST_LOOKED_INTO = 64_000_000


def trace_row(chain: Chain, row_id: str) -> list[dict[str, Any]]:
    """Say what happened to a row in each stored build of the examples, newest build first.

    Raises PipelineError if no build has it.
    """
    store = open_store(chain)
    with readable(store):
        return _trace_row(chain, store, row_id)


def _trace_row(chain: Chain, store: Store, row_id: str) -> list[dict[str, Any]]:
    graph = read_graph(store)
    builds = graph.of(EXAMPLES.name)
    places = [_find_place(store.folder(*m.key), row_id) for m in builds]
    if not any(places):
        raise PipelineError(
            f"row {row_id}: not found in any stored build of {chain.asset(EXAMPLES.name)}. A "
            "row_id has 32 hex characters; `ft-pipeline forget --match TEXT` finds rows by their "
            "text."
        )
    current = find_current(chain, builds)
    with_place = [(m, place) for m, place in zip(builds, places, strict=True) if place is not None]
    holders = {
        reached.key
        for manifest, place in with_place
        if "reason" not in place
        for reached in follow(graph, manifest, place["side"])
    }
    return [
        _describe_build(store, graph, manifest, place, row_id, current, holders)
        for manifest, place in with_place
    ]


def find_holders(chain: Chain, row_ids: Collection[str]) -> list[dict[str, Any]]:
    """Return the stored models and teacher logits that were made from some of the rows.

    `rows` is the number of rows, `trained` says whether one is from the training split, `current`
    whether it is the recipe's current artifact, `cached_in` which row caches also hold its answers.
    """
    store = open_store(chain)
    with readable(store):
        return _find_holders(chain, store, row_ids)


def _find_holders(chain: Chain, store: Store, row_ids: Collection[str]) -> list[dict[str, Any]]:
    graph = read_graph(store)
    builds = graph.of(EXAMPLES.name)
    held: dict[Key, _Held] = {}
    for build in builds:
        folder = store.folder(*build.key)
        for split, rows in _find_used(folder, row_ids).items():
            for reached in follow(graph, build, split):
                if keeps_rows(reached.name):
                    holder = held.setdefault(reached.key, _Held(set()))
                    holder.rows.update(rows)
                    holder.trained |= split == "train"
                    if _is_logits(reached):
                        holder.caches |= _find_caches(store, reached, folder, rows)
    current = find_current(chain, builds) if held else set()
    return [
        {
            **_name(graph.manifests[key], current),
            "rows": len(holder.rows),
            "trained": holder.trained,
            "cached_in": sorted(holder.caches),
        }
        for key, holder in held.items()
    ]


def list_untraceable(chain: Chain) -> list[dict[str, Any]]:
    """Return the models and teacher logits whose rows cannot be traced here."""
    found = built_from.list_untraceable(read_graph(open_store(chain)))
    return [_name(manifest, set()) for manifest in found]


@dataclass
class _Held:
    rows: set[str]
    trained: bool = False
    caches: set[str] = field(default_factory=set)


def _find_caches(
    store: Store, logits: Manifest, examples: Path, row_ids: Collection[str]
) -> set[str]:
    ids = [example["example_id"] for example in _list_examples(examples, row_ids)]
    answers = _find_answers(store, store.folder(*logits.key), ids)
    return {cache for _, answer in answers for cache in answer["cached_in"]}


def find_current(chain: Chain, builds: Sequence[Manifest]) -> set[Key]:
    """Return asset and fingerprint of the current artifacts of the recipes behind example builds.

    Skips recipes that cannot be read, or that need a missing file.
    """
    recipes = {recipe_of(m.asset) or DEFAULT_RECIPE for m in builds} - {chain.name}
    names = [name for name in list_recipes(chain.project) if name in recipes]
    found: set[Key] = set()
    for name in (chain.name, *names):
        with contextlib.suppress(PipelineError):
            asked = chain if name == chain.name else load_other(chain, name)
            found |= {
                state.artifact.manifest.key
                for state in make_plan(asked)
                if state.artifact is not None
            }
    return found


@contextlib.contextmanager
def readable(store: Store) -> Iterator[None]:
    """Raise PipelineError if a stored table cannot be read."""
    try:
        yield
    except (duckdb.Error, pa.ArrowInvalid, OSError) as error:
        raise PipelineError(
            f"a file in {store.root} cannot be read: {error}. `ft-pipeline verify` names the "
            "damage, if run on something made from it; `ft-pipeline run --force ASSET` rebuilds "
            "an artifact."
        ) from error


def _describe_build(
    store: Store,
    graph: ManifestGraph,
    manifest: Manifest,
    place: dict[str, Any],
    row_id: str,
    current: set[Key],
    holders: Collection[Key],
) -> dict[str, Any]:
    folder = store.folder(*manifest.key)
    # Also of a row that was left out: that no example has it is seen, not concluded.
    examples = _list_examples(folder, [row_id])
    reached = follow(graph, manifest, place["side"]) if examples else []
    # A validation split of equal content leads to older models, too, which hold the row.
    without = [
        m
        for m in ([] if examples else follow(graph, manifest, "train"))
        if is_model(m.name) and m.key not in holders
    ]
    ids = [example["example_id"] for example in examples]
    return {
        **_name(manifest, current),
        "used": "reason" not in place,
        "place": place,
        "examples": examples,
        "built_from_it": [_name(m, current) | _look_into(store, m, ids) for m in reached],
        "built_without_it": [_name(m, current) for m in without],
    }


def _name(manifest: Manifest, current: set[Key]) -> dict[str, Any]:
    return {
        "asset": manifest.asset,
        "fingerprint": manifest.fingerprint,
        "created_at": manifest.created_at,
        "current": manifest.key in current,
    }


def _is_logits(manifest: Manifest) -> bool:
    rule = find_rule(manifest.name)
    return rule is not None and rule.kind == "logits"


def _find_place(folder: Path, row_id: str) -> dict[str, Any] | None:
    """Return a row's place and split, or why it was rejected."""
    rows = duckdb.execute(
        f"SELECT source, file, line, side FROM read_parquet({quote(str(folder / ROWS_FILE))}) "
        "WHERE row_id = $1",
        [row_id],
    ).fetchall()
    if rows:
        return dict(zip(("source", "file", "line", "side"), rows[0], strict=True))
    return _find_line(folder / REJECTED_FILE, f'"row_id":"{row_id}"')


def _find_line(file: Path, text: str) -> dict[str, Any] | None:
    """Return the first line of a JSON Lines file that contains a text, or None."""
    if not file.is_file() or not file.stat().st_size:
        return None
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(text.encode("utf-8"))
        if at < 0:
            return None
        start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
        found: dict[str, Any] = json.loads(data[start : end if end > 0 else len(data)])
        return found


def _find_used(folder: Path, row_ids: Collection[str]) -> dict[str, set[str]]:
    """Return the used rows of a build, by split."""
    rows = duckdb.execute(
        f"SELECT side, row_id FROM read_parquet({quote(str(folder / ROWS_FILE))}) "
        "WHERE list_contains($1, row_id)",
        [list(row_ids)],
    ).fetchall()
    found: dict[str, set[str]] = {}
    for split, row_id in rows:
        found.setdefault(split, set()).add(row_id)
    return found


def _list_examples(folder: Path, row_ids: Collection[str]) -> list[dict[str, Any]]:
    names = ("example_id", "task", "side", "prompt")
    given = list(row_ids)
    # For one row it is a third faster.
    one = len(given) == 1
    condition = "list_contains(source_rows, $1)" if one else "list_has_any(source_rows, $1)"
    rows = duckdb.execute(
        f"SELECT {', '.join(names)} FROM read_parquet({quote(str(folder / EXAMPLES_FILE))}) "
        f"WHERE {condition}",
        [given[0] if one else given],
    ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def _look_into(store: Store, manifest: Manifest, example_ids: Sequence[str]) -> dict[str, Any]:
    """Say what tokens or teacher logits hold of the examples; empty for other artifacts."""
    folder = store.folder(*manifest.key)
    tokens = folder / TOKENS_FILE
    if tokens.is_file() and tokens.stat().st_size > LARGEST_LOOKED_INTO:
        return {"not_looked_into": f"{TOKENS_FILE} has {tokens.stat().st_size / 1e6:.0f} MB"}
    if tokens.is_file():
        return {"examples": _count_tokens(tokens, example_ids)}
    if _is_logits(manifest):
        return {"examples": dict(_find_answers(store, folder, example_ids))}
    return {}


def _count_tokens(file: Path, example_ids: Sequence[str]) -> dict[str, dict[str, int] | None]:
    """Return tokens and trained tokens of each example; None for one that was dropped."""
    found: dict[str, dict[str, int] | None] = {}
    for example_id in example_ids:
        line = _find_line(file, f'"example_id": "{example_id}"')
        found[example_id] = line and {
            "tokens": len(line["input_ids"]),
            "trained": sum(label != IGNORED for label in line["labels"]),
        }
    return found


def _find_answers(
    store: Store, folder: Path, example_ids: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the number of answered positions of each example, and the caches that hold them."""
    table = map_table(folder / LOGITS_EXAMPLES_FILE)
    for example_id in example_ids:
        at = pc.index(table["example_id"], example_id).as_py()  # pa.array would import pandas
        if at < 0:
            continue
        key = table["key"][at].as_py()
        cached = sorted(
            shard.relative_to(store.root).as_posix()
            for cache in list_caches(store.root / "rows", LOGITS_CACHE)
            for shard, tables in cache.read_shards((EXAMPLES_TABLE,))
            if _has_key(tables[EXAMPLES_TABLE], key)
        )
        positions = table["positions"][at].as_py()
        yield example_id, {"positions": positions, "cached_in": cached}


def _has_key(examples: pa.Table, key: bytes) -> bool:
    keys = examples["key"]
    return bool(pc.index(keys, pa.scalar(key, keys.type)).as_py() >= 0)
