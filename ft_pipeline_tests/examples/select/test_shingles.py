"""Shingles: three words in a row, whatever the case, punctuation and script."""

import os
import random
import re
import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_pipeline.examples.select.shingles import compute_keys, compute_shingles, hash_words


def shingle(texts: list[str]) -> list[list[int]]:
    found = compute_shingles(hash_words(pa.array(texts, pa.string())))
    ends = found.offsets.tolist()
    return [found.values[a:b].tolist() for a, b in pairwise(ends)]


def list_runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return list(dict.fromkeys(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))))


@pytest.mark.parametrize(
    ("text", "count"),
    [("Seine", 1), ("Two words", 1), ("Three words here", 1), ("And four of them", 2), ("?", 1)],
)
def test_a_text_has_a_shingle_for_each_three_words(text: str, count: int) -> None:
    (found,) = shingle([text])
    assert len(found) == count


WORDS = st.lists(st.sampled_from(["a", "B", "c3", "d", "x-y", "it's"]), min_size=1, max_size=9)


@settings(deadline=None, max_examples=25)  # the machine is shared
@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=6))
def test_shingles_are_equal_where_the_words_are(texts: list[str]) -> None:
    runs = [run for text in texts for run in list_runs(text)]
    hashes = [value for found in shingle(texts) for value in found]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs))
    assert len(set(zip(hashes, runs, strict=True))) == len(set(runs))


@settings(deadline=None, max_examples=25)  # the machine is shared
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6))
def test_a_text_has_the_same_shingles_alone_and_among_others(texts: list[str]) -> None:
    assert shingle(texts) == [shingle([text])[0] for text in texts]


def test_a_slice_has_the_shingles_of_its_texts() -> None:
    texts = ["One two three four", "", "Fünf sechs", "seven eight nine ten"]
    part = compute_shingles(
        hash_words(pa.array(["before it", *texts, "behind it"], pa.string()).slice(1, 4))
    )
    whole = compute_shingles(hash_words(pa.array(texts, pa.string())))
    assert part.values.tolist() == whole.values.tolist()
    assert part.offsets.tolist() == whole.offsets.tolist()


def test_no_texts_have_no_shingles() -> None:
    found = compute_shingles(hash_words(pa.array([], pa.string())))
    assert (len(found.values), found.offsets.tolist()) == (0, [0])


def test_hashes_of_words_do_not_collide() -> None:
    rng = random.Random(0)
    texts = list({f"w{rng.randrange(10**9)} x{rng.randrange(10**9)}" for _ in range(20_000)})
    assert len({value for found in shingle(texts) for value in found}) == len(texts)


@pytest.mark.parametrize("text", ["塞纳河流经哪座城市", "どの川が流れますか", "แม่น้ำอะไรไหลผ่าน"])
def test_each_character_of_a_script_without_spaces_counts_as_a_word(text: str) -> None:
    (found,) = shingle([text])
    assert len(found) > 4
    (other,) = shingle([f"x{text}"])
    assert set(found) <= set(other)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_computes_the_same_hashes(seed: str) -> None:
    program = (
        "import pyarrow as pa; from ft_pipeline.examples.select.shingles import compute_shingles, "
        "hash_words; texts = pa.array(['Which river flows through Orléans?']); "
        "print(compute_shingles(hash_words(texts)).values.tolist())"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == str(shingle(["Which river flows through Orléans?"])[0])


def test_a_shingle_that_stands_twice_counts_once() -> None:
    (found,) = shingle(["one two three one two three"])
    assert len(found) == len(set(found)) == 3


def test_texts_have_the_same_key_where_they_are_the_same() -> None:
    texts = ["dog bites man", "man bites dog", "Dog bites man", "dog bites", "", "dog bites man"]
    keys = compute_keys(pa.array(texts, pa.string())).tolist()
    assert keys[0] == keys[-1]
    assert len(set(keys)) == len(set(texts))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 511, 512, 513, 5000])
def test_words_of_any_length_differ_by_their_last_letter(length: int) -> None:
    stem = "x" * (length - 1)
    one, other, again = (value for (value,) in shingle([f"{stem}a", f"{stem}b", f"{stem}a"]))
    assert one == again != other
