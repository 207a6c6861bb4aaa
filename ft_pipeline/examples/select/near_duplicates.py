"""Near-duplicate questions: MinHash finds candidates, the Jaccard similarity decides.

A question's signature (rensa's R-MinHash, arXiv 1704.04370) is cut into bands; two questions with
an equal band are candidates (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
A candidate pair counts when the exact Jaccard similarity of its shingles reaches the threshold.

The row cache keeps what was computed for a question: its shingles, its bands, and its pairs with
all earlier questions. So new rows cost only their own work.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import rensa

from ft_pipeline.examples.select.shingles import (
    Lists,
    compute_keys,
    compute_shingles,
    hash_words,
    join,
)
from ft_pipeline.examples.select.split import mix
from ft_pipeline.store.artifact_files import MINHASH_CACHE
from ft_pipeline.store.row_cache import RowCache

SEED = 42
# Of pairs just at the threshold at most so many are missed.
MISSED = 0.01
# So many candidate pairs are looked at, those of small bands first; members of the bands beyond are
# compared with the first and with those that stand nearest only.
MOST_PAIRS = 10_000_000
NEIGHBOURS = 20
QUESTIONS_AT_ONCE = 20_000  # questions whose words are in memory at once
# Shingles that are compared at once, and pairs; these are numbered in 16 bits.
MOST_ELEMENTS = 4_000_000
MOST_AT_ONCE = 1 << 16
# A pair just at the threshold counts, however its similarity is rounded.
ROUNDING = 1e-9
TABLES = ("questions", "bands", "pairs")


@dataclass
class _Shard:
    """Questions by key, with their shingles and bands."""

    questions: np.ndarray  # uint64[questions], sorted
    shingles: Lists
    bands: np.ndarray  # uint64[questions × bands], sorted
    owners: np.ndarray  # uint32[questions × bands], the question of each band


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return (bands, rows per band) for a threshold of 0.3 or more.

    Uses few hash values, and loses at most MISSED of the pairs at the threshold. A pair of
    similarity s shares a band with probability 1 − (1 − s^rows)^bands.
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
    """Finds near-duplicates among the added questions, with the help of a cache."""

    def __init__(self, threshold: float, cache_root: Path | None) -> None:
        self.threshold = threshold
        self.bands, self.rows = choose_bands(threshold)
        settings = {
            "threshold": threshold,
            "bands": [self.bands, self.rows],
            "seed": SEED,
            "library": f"rensa {rensa.RMinHash.ALGORITHM_VERSION}",
            "shingles": 3,
        }
        self._cache = RowCache.of(cache_root, MINHASH_CACHE, settings) if cache_root else None
        self._added: list[np.ndarray] = []  # keys
        self._questions: list[pa.Array] = []  # the last ones added
        self._shards: list[_Shard] = []
        self._pairs: list[np.ndarray] = []
        self.computed = 0

    def add(self, questions: pa.Array) -> np.ndarray:
        """Add questions; return the key of each, uint64[questions] (shingles.compute_keys)."""
        self._questions.append(questions)
        self._added.append(compute_keys(questions))
        return self._added[-1]

    def find_pairs(self) -> pa.Table:
        """Return the pairs of near-duplicates among the added questions, as keys `a` < `b`."""
        self._update()
        wanted = _sort_unique(np.concatenate([*self._added, np.zeros(0, np.uint64)]))
        pairs = np.concatenate([*self._pairs, np.zeros((0, 2), np.uint64)])
        kept = pairs[_contains(wanted, pairs[:, 0]) & _contains(wanted, pairs[:, 1])]
        kept = np.unique(np.sort(kept, axis=1), axis=0)
        return pa.table({"a": kept[:, 0], "b": kept[:, 1]})

    def find_near(self, questions: Iterable[str]) -> np.ndarray:
        """Return the sorted keys of added questions that are near one of these."""
        self._update()
        texts = pa.array(sorted(set(questions)), pa.string())
        if not len(texts) or not self._added:
            return np.zeros(0, np.uint64)
        keys = compute_keys(texts)
        order = np.argsort(keys)
        other = self._make_shard(keys[order], texts.take(pa.array(order)))
        wanted = _sort_unique(np.concatenate(self._added))
        found = [self._compare(shard, other) for shard in self._shards]
        near = _sort_unique(np.concatenate([pairs[:, 0] for pairs in found]))
        return near[_contains(wanted, near)]

    def _update(self) -> None:
        """Compute what the cache lacks, and add it."""
        if not self._questions:
            return
        with self._cache.locked() if self._cache else nullcontext():
            if self._cache:
                self._load(self._cache)
            keys, questions = self._select_new()
            self._questions = []
            if not len(keys):
                return
            shard = self._make_shard(keys, questions)
            pairs = [self._compare(old, shard) for old in self._shards]
            pairs.append(self._compare(shard, shard))
            found = np.concatenate(pairs)
            self.computed += len(keys)
            self._shards.append(shard)
            self._pairs.append(found)
            if self._cache:
                self._cache.append(_to_tables(shard, found))

    def _load(self, cache: RowCache) -> None:
        shards = [_from_tables(tables) for tables in cache.read(TABLES)]
        self._shards = [shard for shard, _ in shards]
        self._pairs = [pairs for _, pairs in shards]

    def _select_new(self) -> tuple[np.ndarray, pa.Array]:
        """Return the added questions that are in no shard, each once, sorted by key."""
        keys = np.concatenate(self._added[-len(self._questions) :])
        order = np.argsort(keys, kind="stable")
        is_new = np.ones(len(keys), bool)
        is_new[1:] = keys[order[1:]] != keys[order[:-1]]
        for shard in self._shards:
            is_new &= ~_contains(shard.questions, keys[order])
        chosen = order[is_new]
        return keys[chosen], pa.concat_arrays(self._questions).take(pa.array(chosen))

    def _make_shard(self, keys: np.ndarray, questions: pa.Array) -> _Shard:
        """Return the shard of the questions, whose keys are sorted."""
        some = [
            compute_shingles(hash_words(questions.slice(start, QUESTIONS_AT_ONCE)))
            for start in range(0, len(questions), QUESTIONS_AT_ONCE)
        ]
        bands = np.concatenate([self._hash_bands(shingles) for shingles in some]).ravel()
        order = np.argsort(bands)
        return _Shard(keys, join(some), bands[order], (order // self.bands).astype(np.uint32))

    def _hash_bands(self, shingles: Lists) -> np.ndarray:
        """Return uint64[questions, bands]: the hash of each band of the signature."""
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.values, shingles.offsets.astype(np.uint64), self.bands * self.rows, SEED
        )
        signature = np.array(matrix.to_rows(), np.uint64).reshape(-1, self.bands, self.rows)
        hashes = np.arange(1, self.bands + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for row in range(self.rows):
            hashes = mix(hashes ^ signature[:, :, row])
        return hashes

    def _compare(self, one: _Shard, other: _Shard) -> np.ndarray:
        """Return uint64[pairs, 2]: the keys of near-duplicates, of `one` and of `other`."""
        pairs = _inner_candidates(one) if one is other else _outer_candidates(one, other)
        sizes = (
            np.diff(one.shingles.offsets)[pairs[:, 0]],
            np.diff(other.shingles.offsets)[pairs[:, 1]],
        )
        smaller, larger = np.minimum(*sizes), np.maximum(*sizes)
        pairs = pairs[smaller + ROUNDING >= self.threshold * larger]  # a similarity is at most that
        near = _compute_jaccard(one.shingles, other.shingles, pairs) + ROUNDING >= self.threshold
        return np.stack([one.questions[pairs[near, 0]], other.questions[pairs[near, 1]]], axis=1)


def find_clusters(pairs: pa.Table) -> pa.Table:
    """Return the cluster of each key that has a near-duplicate: `question_key`, `cluster`.

    Clusters are the connected components of the pairs, named by their smallest key.
    """
    parent: dict[int, int] = {}

    def find(key: int) -> int:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for a, b in zip(pairs["a"].to_pylist(), pairs["b"].to_pylist(), strict=True):
        first, second = sorted((find(a), find(b)))
        parent[second] = first
    keys = sorted(parent)
    clusters = [find(key) for key in keys]
    return pa.table(
        {"question_key": pa.array(keys, pa.uint64()), "cluster": pa.array(clusters, pa.uint64())}
    )


def _compute_jaccard(one: Lists, other: Lists, pairs: np.ndarray) -> np.ndarray:
    """Return float64[pairs]: the Jaccard similarity of each pair's shingles."""
    lengths = [np.diff(lists.offsets)[pairs[:, side]] for side, lists in enumerate((one, other))]
    total = lengths[0] + lengths[1]
    elements = np.cumsum(total)
    common = np.zeros(len(pairs), np.int64)
    start = 0
    while start < len(pairs):
        reach = elements[start] - total[start] + MOST_ELEMENTS
        end = max(start + 1, int(np.searchsorted(elements, reach, "right")))
        end = min(end, start + MOST_AT_ONCE)
        sides = (one.take(pairs[start:end, 0]), other.take(pairs[start:end, 1]))
        numbered = [
            side.owners().astype(np.uint64) << np.uint64(48) | side.values >> np.uint64(16)
            for side in sides
        ]
        both = np.sort(np.concatenate(numbered))  # a shingle of both stands twice in a row
        twice = both[1:][both[1:] == both[:-1]] >> np.uint64(48)
        common[start:end] = np.bincount(twice.astype(np.int64), minlength=end - start)
        start = end
    return common / np.maximum(total - common, 1)


def _inner_candidates(shard: _Shard) -> np.ndarray:
    """Return int64[pairs, 2]: questions of one shard that share a band."""
    bands, owners = shard.bands, shard.owners.astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], bands[1:] != bands[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(bands)]]))
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
        members = np.sort(owners[begin : begin + size])
        found.append(np.stack([np.full(size, members[0]), members], axis=1))
        for step in range(1, NEIGHBOURS):
            found.append(np.stack([members[:-step], members[step:]], axis=1))
    return _distinct(np.concatenate([pairs.reshape(-1, 2) for pairs in found]))


def _outer_candidates(one: _Shard, other: _Shard) -> np.ndarray:
    """Return int64[pairs, 2]: questions of two shards that share a band."""
    start = np.searchsorted(one.bands, other.bands, "left")
    counts = np.searchsorted(one.bands, other.bands, "right") - start
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
    packed = _sort_unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)


def _sort_unique(values: np.ndarray) -> np.ndarray:
    """Like np.unique, which hashes in numpy 2.3 and takes twice as long here."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def _contains(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[place] == wanted


def _to_tables(shard: _Shard, pairs: np.ndarray) -> dict[str, pa.Table]:
    offsets = pa.array(shard.shingles.offsets, pa.int64())
    shingles = pa.LargeListArray.from_arrays(offsets, pa.array(shard.shingles.values))
    return {
        "questions": pa.table({"key": pa.array(shard.questions), "shingles": shingles}),
        "bands": pa.table({"band": pa.array(shard.bands), "owner": pa.array(shard.owners)}),
        "pairs": pa.table({"a": pa.array(pairs[:, 0]), "b": pa.array(pairs[:, 1])}),
    }


def _from_tables(tables: dict[str, pa.Table]) -> tuple[_Shard, np.ndarray]:
    questions, bands, pairs = tables["questions"], tables["bands"], tables["pairs"]
    lists = questions.column("shingles").combine_chunks()
    shard = _Shard(
        questions.column("key").to_numpy(),
        Lists(lists.values.to_numpy(), lists.offsets.to_numpy()),
        bands.column("band").to_numpy(),
        bands.column("owner").to_numpy(),
    )
    return shard, np.stack([pairs["a"].to_numpy(), pairs["b"].to_numpy()], axis=1)
