"""Questions as sets of shingles: hashes of every three consecutive words.

    "Which river flows through Paris?"  →  {which river flows, river flows through,
                                            flows through paris}, as 64-bit hashes

Words are lower-case and without punctuation, except signs such as + and #; in scripts without
spaces, each character counts as a word. A question with fewer than three words is one shingle.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.examples.select.split import mix

# Odd multipliers that tell the places of a shingle's words apart (from SplitMix64 and PCG).
_PLACES = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# Signs that make another word: C, C++ and C#; 12 + 1 and 12 * 1.
_SIGNS = "+#%$=<>*^"
_FOLD = bytes(
    c if c >= 128 else ord(chr(c).lower()) if chr(c).isalnum() or chr(c) in _SIGNS else ord(" ")
    for c in range(256)
)
_WITHOUT_SPACES = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff])"
)
LONG_WORD = 512  # bytes


@dataclass(frozen=True)
class Lists:
    """A list of 64-bit hashes per question: those of i are values[offsets[i]:offsets[i + 1]].

    `values`: uint64[all hashes], `offsets`: int64[questions + 1].
    """

    values: np.ndarray
    offsets: np.ndarray

    def owners(self) -> np.ndarray:
        """Return the question of each value: int64[all hashes]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def take(self, questions: np.ndarray) -> "Lists":
        """Return the lists of these questions, in this order."""
        lengths = np.diff(self.offsets)[questions]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Lists(self.values[np.repeat(self.offsets[questions], lengths) + within], offsets)


def join(many: Sequence[Lists]) -> Lists:
    """Return all lists, concatenated."""
    lengths = np.concatenate([np.diff(lists.offsets) for lists in many])
    values = np.concatenate([lists.values for lists in many])
    return Lists(values, np.concatenate([[0], np.cumsum(lengths)]))


def compute_keys(questions: pa.Array) -> np.ndarray:
    """Return uint64[questions]: 64 bits for each text, the same on every machine.

    `mix` combines its length and its bytes, eight at a time.
    """
    ends = np.frombuffer(questions.buffers()[1], np.int32)[questions.offset :][: len(questions) + 1]
    start, left = ends[:-1].astype(np.int64), np.diff(ends).astype(np.int64)
    content = np.append(
        np.frombuffer(questions.buffers()[2] or b"", np.uint8), np.zeros(8, np.uint8)
    )
    eights = np.ndarray(len(content) - 7, "<u8", content, strides=(1,))
    hashes = mix(left.astype(np.uint64))
    long = np.flatnonzero(left > LONG_WORD)
    at = np.flatnonzero((left > 0) & (left <= LONG_WORD))
    start, left = start[at], left[at]
    while len(at):
        masks = np.uint64(2**64 - 1) >> (8 * (8 - np.minimum(left, 8))).astype(np.uint64)
        hashes[at] = mix(hashes[at] ^ (eights[start] & masks))
        more = left > 8
        at, start, left = at[more], start[more] + 8, left[more] - 8
    for place in long:
        digest = hashlib.md5(questions[int(place)].as_py().encode(), usedforsecurity=False).digest()
        hashes[place] = int.from_bytes(digest[:8], "little")
    return hashes


def hash_words(questions: pa.Array) -> Lists:
    """Return the keys of each question's words, in order."""
    words = pc.ascii_split_whitespace(_to_words(questions))
    offsets = words.offsets.to_numpy().astype(np.int64)
    hashes = compute_keys(words.values.slice(offsets[0], offsets[-1] - offsets[0]))
    return Lists(hashes, offsets - offsets[0])


def compute_shingles(words: Lists) -> Lists:
    """Return the distinct shingles of each question."""
    question, hashes = words.owners(), words.values
    first, second = (_following(hashes, question, step) for step in (1, 2))
    with np.errstate(over="ignore"):
        places = [np.uint64(place) for place in _PLACES]
        shingles = hashes * places[0] + first[0] * places[1] + second[0] * places[2]
    starts = np.zeros(len(hashes), bool)
    starts[words.offsets[:-1][np.diff(words.offsets) > 0]] = True
    kept = second[1] | (starts & ~second[1])
    shingles, question = shingles[kept], question[kept]
    again = _find_repeated(shingles, question)
    counts = np.bincount(question[~again], minlength=len(words.offsets) - 1)
    return Lists(shingles[~again], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _find_repeated(shingles: np.ndarray, question: np.ndarray) -> np.ndarray:
    """Return a mask of shingles that already occurred in their question."""
    own = mix(shingles ^ mix(question.astype(np.uint64)))
    in_order = np.sort(own)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    again = np.zeros(len(own), bool)
    if len(repeated):
        marks, low = np.zeros(1 << 16, bool), np.uint64((1 << 16) - 1)
        marks[repeated & low] = True
        at = np.flatnonzero(marks[own & low])  # all that stand twice, and few others
        at = at[np.argsort(own[at], kind="stable")]
        again[at[1:]] = own[at[1:]] == own[at[:-1]]
    return again


def _following(
    hashes: np.ndarray, question: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of the word `step` words ahead (0 past the end), and its position."""
    shifted = np.zeros_like(hashes)
    there = np.zeros(len(hashes), bool)
    if len(hashes) > step:
        there[:-step] = question[step:] == question[:-step]
        shifted[:-step] = np.where(there[:-step], hashes[step:], 0)
    return shifted, there


def _to_words(questions: pa.Array) -> pa.Array:
    """Return the questions' words, separated by spaces."""
    plain = pc.string_is_ascii(questions)
    if not pc.all(plain).as_py():
        odd = [_vocabulary_of(text) for text in questions.filter(pc.invert(plain)).to_pylist()]
        questions = pc.replace_with_mask(questions, pc.invert(plain), pa.array(odd, pa.string()))
    offsets = np.frombuffer(questions.buffers()[1], np.int32)
    start, end = questions.offset, questions.offset + len(questions)
    content = questions.buffers()[2]
    folded = (content.to_pybytes() if content else b"").translate(_FOLD)
    whole = pa.StringArray.from_buffers(
        len(questions), pa.py_buffer(offsets[start : end + 1].copy()), pa.py_buffer(folded)
    )
    trimmed = pc.ascii_trim_whitespace(whole)
    nothing = pc.equal(trimmed, "")  # punctuation alone: the text itself is the word
    if not pc.any(nothing).as_py():
        return trimmed
    return pc.if_else(nothing, pc.replace_substring(questions, " ", "_"), trimmed)


def _vocabulary_of(text: str) -> str:
    spaced = _WITHOUT_SPACES.sub(r" \1 ", text.casefold())
    return " ".join("".join(c if _belongs_to_word(c) else " " for c in spaced).split()) or text


def _belongs_to_word(character: str) -> bool:
    """Letters, digits, the vowel signs and tone marks of many scripts, and signs like + and #."""
    return character.isalnum() or character in _SIGNS or unicodedata.category(character)[0] == "M"
