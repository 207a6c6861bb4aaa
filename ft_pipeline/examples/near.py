"""Near-duplicate questions: MinHash finds candidates, the Jaccard similarity decides.

A question's signature (rensa's R-MinHash, arXiv 1704.04370) is cut into bands; two questions with
an equal band are candidates (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
A candidate pair counts when the exact Jaccard similarity of its shingles reaches the threshold.

What was computed for a question is kept in the row cache: its shingles, its bands, and its pairs
with all questions that were there before. So new rows cost only their own work.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import rensa

from ft_pipeline.examples.order import hex_to_uint64
from ft_pipeline.examples.shingles import Shingles, compute_shingles
from ft_pipeline.row_cache import RowCache

SEED = 42
# Of pairs just at the threshold at most so many are missed.
MISSED = 0.01
# So many candidate pairs are looked at, those of small bands first; members of the bands beyond are
# compared with the first and with those that stand nearest only.
MOST_PAIRS = 3_000_000
NEIGHBOURS = 20
CHUNK = 100_000
TABLES = ("questions", "bands", "pairs")


@dataclass
class _Shard:
    """Questions with their shingles and bands. `groups` and `keys` are sorted."""

    groups: np.ndarray  # uint64[questions]
    shingles: Shingles
    keys: np.ndarray  # uint64[questions × bands]
    owners: np.ndarray  # uint32[questions × bands], the question of each key

    def shingle_set(self, index: int) -> frozenset[int]:
        start, end = self.shingles.offsets[index], self.shingles.offsets[index + 1]
        return frozenset(self.shingles.values[start:end].tolist())


@dataclass
class _New:
    """Questions that are in no shard yet."""

    groups: list[np.ndarray] = field(default_factory=list)
    questions: list[pa.Array] = field(default_factory=list)


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows a band) for a threshold of 0.3 or more.

    Few hash values, and at most MISSED of the pairs at the threshold lost.
    A pair of similarity s shares a band with probability 1 − (1 − s^rows)^bands.
    """
    options = [
        (0.35**rows * bands > 0.5, bands * rows, bands, rows)  # few candidates that are not near
        for rows in range(2, 9)
        for bands in range(1, 65)
        if (1 - threshold**rows) ** bands <= MISSED
    ]
    _, _, bands, rows = min(options)
    return bands, rows


class NearIndex:
    """Finds near-duplicates among the questions that are added, with the help of a cache."""

    def __init__(self, threshold: float, cache_root: Path | None) -> None:
        self.threshold = threshold
        self.bands, self.rows = choose_bands(threshold)
        settings = {
            "threshold": threshold,
            "bands": [self.bands, self.rows],
            "seed": SEED,
            "library": f"rensa {rensa.RMinHash.ALGORITHM_VERSION}",
            "shingles": 2,
        }
        self._cache = RowCache(cache_root, "minhash", settings) if cache_root else None
        self._added: list[np.ndarray] = []
        self._questions: list[pa.Array] = []
        self._shards: list[_Shard] = []
        self._pairs: list[np.ndarray] = []
        self.computed = 0

    def add(self, keys: pa.Array, questions: pa.Array) -> None:
        """Add questions by the key of their words (shingles.compute_keys)."""
        self._added.append(hex_to_uint64(keys))
        self._questions.append(questions)

    def find_pairs(self) -> pa.Table:
        """Return the pairs of near-duplicates among the added questions, as keys `a` < `b`."""
        self._update()
        wanted = np.unique(np.concatenate([*self._added, np.zeros(0, np.uint64)]))
        pairs = np.concatenate([*self._pairs, np.zeros((0, 2), np.uint64)])
        kept = pairs[_contains(wanted, pairs[:, 0]) & _contains(wanted, pairs[:, 1])]
        kept = np.unique(np.sort(kept, axis=1), axis=0)
        return pa.table({"a": _to_hex(kept[:, 0]), "b": _to_hex(kept[:, 1])})

    def find_near(self, questions: Iterable[str]) -> pa.Array:
        """Return the keys of added questions that are near one of these."""
        self._update()
        texts = pa.array(sorted(set(questions)), pa.string())
        if not len(texts) or not self._added:
            return pa.array([], pa.string())
        other = self._make_shard(np.arange(len(texts), dtype=np.uint64), [texts])
        wanted = np.unique(np.concatenate(self._added))
        found = [self._compare(shard, other) for shard in self._shards]
        near = np.unique(np.concatenate([pairs[:, 0] for pairs in found]))
        return pa.array(_to_hex(near[_contains(wanted, near)]), pa.string())

    def _update(self) -> None:
        """Compute what the cache does not have, and add it."""
        if not self._questions:
            return
        with self._cache.locked() if self._cache else nullcontext():
            if self._cache:
                self._load(self._cache)
            new = self._select_new()
            self._questions = []
            if not new.groups:
                return
            groups = np.concatenate(new.groups)
            shard = self._make_shard(groups, new.questions)
            pairs = [self._compare(old, shard) for old in self._shards]
            pairs.append(self._compare(shard, shard))
            found = np.concatenate(pairs)
            self.computed += len(groups)
            self._shards.append(shard)
            self._pairs.append(found)
            if self._cache:
                self._cache.append(_to_tables(shard, found))

    def _load(self, cache: RowCache) -> None:
        shards = [_from_tables(tables) for tables in cache.read(TABLES)]
        self._shards = [shard for shard, _ in shards]
        self._pairs = [pairs for _, pairs in shards]

    def _select_new(self) -> _New:
        """Return each added question once that is in no shard."""
        new, seen = _New(), np.zeros(0, np.uint64)
        for groups, questions in zip(
            self._added[-len(self._questions) :], self._questions, strict=True
        ):
            unique, first = np.unique(groups, return_index=True)
            known = _contains(seen, unique)
            for shard in self._shards:
                known |= _contains(shard.groups, unique)
            if not known.all():
                new.groups.append(unique[~known])
                new.questions.append(questions.take(pa.array(first[~known])))
                seen = np.union1d(seen, unique[~known])
        return new

    def _make_shard(self, groups: np.ndarray, questions: list[pa.Array]) -> _Shard:
        order = np.argsort(groups, kind="stable")
        texts = pa.concat_arrays(questions).take(pa.array(order))
        keys, values, counts = [], [], []
        for start in range(0, len(texts), CHUNK):
            some = compute_shingles(texts.slice(start, CHUNK))
            keys.append(self._band_keys(some))
            values.append(some.values)
            counts.append(np.diff(some.offsets))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        flat = np.concatenate(keys).ravel()
        by_key = np.argsort(flat, kind="stable")
        owners = (by_key // self.bands).astype(np.uint32)
        return _Shard(
            groups[order], Shingles(np.concatenate(values), offsets), flat[by_key], owners
        )

    def _band_keys(self, shingles: Shingles) -> np.ndarray:
        """Return uint64[questions, bands]: the hash of each band of the signature."""
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.values, shingles.offsets.astype(np.uint64), self.bands * self.rows, SEED
        )
        signature = np.array(matrix.to_rows(), np.uint64).reshape(-1, self.bands, self.rows)
        key = np.arange(1, self.bands + 1, dtype=np.uint64)[None, :] * np.uint64(0x9E3779B97F4A7C15)
        with np.errstate(over="ignore"):
            for row in range(self.rows):
                key = (key ^ signature[:, :, row]) * np.uint64(0xBF58476D1CE4E5B9)
                key ^= key >> np.uint64(31)
        return key

    def _compare(self, one: _Shard, other: _Shard) -> np.ndarray:
        """Return uint64[pairs, 2]: the groups of near-duplicates, of `one` and of `other`."""
        candidates = _inner_candidates(one) if one is other else _outer_candidates(one, other)
        sets: dict[tuple[int, int], frozenset[int]] = {}
        near = []
        for a, b in candidates.tolist():
            first = sets.get((0, a)) or sets.setdefault((0, a), one.shingle_set(a))
            side = 0 if one is other else 1
            second = sets.get((side, b)) or sets.setdefault((side, b), other.shingle_set(b))
            common = len(first & second)
            # A pair just at the threshold counts, however the product is rounded.
            if common + 1e-9 >= self.threshold * (len(first) + len(second) - common):
                near.append((a, b))
        found = np.array(near, np.int64).reshape(-1, 2)
        return np.stack([one.groups[found[:, 0]], other.groups[found[:, 1]]], axis=1)


def find_clusters(pairs: pa.Table) -> pa.Table:
    """Return the cluster of each key that has a near-duplicate: `question_key`, `cluster`.

    Clusters are the connected components of the pairs.
    """
    parent: dict[str, str] = {}

    def find(group: str) -> str:
        while parent.setdefault(group, group) != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for a, b in zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True):
        first, second = sorted((find(a), find(b)))
        parent[second] = first
    groups = sorted(parent)
    text = pa.string()
    return pa.table(
        {
            "question_key": pa.array(groups, text),
            "cluster": pa.array([find(group) for group in groups], text),
        }
    )


def _inner_candidates(shard: _Shard) -> np.ndarray:
    """Return int64[pairs, 2]: questions of one shard that share a band."""
    keys, owners = shard.keys, shard.owners.astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(keys)]]))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    order = np.argsort(sizes, kind="stable")
    small = order[np.cumsum(sizes[order] * (sizes[order] - 1) // 2) <= MOST_PAIRS]
    found = [np.zeros((0, 2), np.int64)]
    for size in np.unique(sizes[small]):  # all pairs of all bands of this size
        first, second = np.triu_indices(size, 1)
        begin = starts[small][sizes[small] == size][:, None]
        found.append(np.stack([owners[begin + first], owners[begin + second]], axis=-1))
    large = np.setdiff1d(order, small)
    for begin, size in zip(starts[large], sizes[large], strict=True):
        members = owners[begin : begin + size]
        found.append(np.stack([np.full(size, members[0]), members], axis=1))
        for step in range(1, NEIGHBOURS):
            found.append(np.stack([members[:-step], members[step:]], axis=1))
    return _distinct(np.concatenate([pairs.reshape(-1, 2) for pairs in found]))


def _outer_candidates(one: _Shard, other: _Shard) -> np.ndarray:
    """Return int64[pairs, 2]: questions of two shards that share a band."""
    start = np.searchsorted(one.keys, other.keys, "left")
    counts = np.searchsorted(one.keys, other.keys, "right") - start
    if counts.sum() > MOST_PAIRS:
        counts = np.minimum(counts, NEIGHBOURS)
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    ours = one.owners[np.repeat(start, counts) + within].astype(np.int64)
    theirs = np.repeat(other.owners.astype(np.int64), counts)
    return _distinct(np.stack([ours, theirs], axis=1), same=False)


def _distinct(pairs: np.ndarray, same: bool = True) -> np.ndarray:
    if same:
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    if not len(pairs):
        return np.zeros((0, 2), np.int64)
    packed = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)


def _contains(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[place] == wanted


def _to_hex(values: np.ndarray) -> list[str]:
    return [f"{value:016x}" for value in values.tolist()]


def _to_tables(shard: _Shard, pairs: np.ndarray) -> dict[str, pa.Table]:
    offsets = pa.array(shard.shingles.offsets, pa.int64())
    shingles = pa.LargeListArray.from_arrays(offsets, pa.array(shard.shingles.values))
    return {
        "questions": pa.table({"group": pa.array(shard.groups), "shingles": shingles}),
        "bands": pa.table({"key": pa.array(shard.keys), "owner": pa.array(shard.owners)}),
        "pairs": pa.table({"a": pa.array(pairs[:, 0]), "b": pa.array(pairs[:, 1])}),
    }


def _from_tables(tables: dict[str, pa.Table]) -> tuple[_Shard, np.ndarray]:
    questions, bands, pairs = tables["questions"], tables["bands"], tables["pairs"]
    lists = questions.column("shingles").combine_chunks()
    shingles = Shingles(lists.values.to_numpy(), lists.offsets.to_numpy())
    shard = _Shard(
        questions.column("group").to_numpy(),
        shingles,
        bands.column("key").to_numpy(),
        bands.column("owner").to_numpy(),
    )
    return shard, np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()], axis=1)
