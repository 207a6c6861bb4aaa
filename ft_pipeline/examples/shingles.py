"""Questions as sets of shingles: hashes of each three words in a row.

    "Which river flows through Paris?"  →  {which river flows, river flows through,
                                            flows through paris}, as 64-bit hashes

Words are in lower case and without punctuation, but with signs such as + and #; each character of a
script without spaces counts as a word. A question of fewer than three words is one shingle.
"""

import re
import unicodedata
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


@dataclass(frozen=True)
class Shingles:
    """The shingles of many questions: those of question i are values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray


def compute_keys(questions: pa.Array) -> pa.Array:
    """Return 16 hex characters for each question, the same for those with the same words."""
    with duckdb.connect() as con:
        con.register("questions", pa.table({"words": _to_words(questions)}))
        keys = con.sql('SELECT left(md5(words), 16) AS "key" FROM questions').to_arrow_table()
    return pa.concat_arrays(keys.column("key").chunks or [pa.array([], pa.string())])


def compute_shingles(questions: pa.Array) -> Shingles:
    """Return the shingles of questions. The same text gives the same hashes on every machine."""
    words = pc.ascii_split_whitespace(_to_words(questions))
    offsets = words.offsets.to_numpy().astype(np.int64)
    hashes = _hash_words(words.values.slice(offsets[0], offsets[-1] - offsets[0]))
    offsets = offsets - offsets[0]
    lengths = np.diff(offsets)
    question = np.repeat(np.arange(len(lengths)), lengths)
    first, second = (_following(hashes, question, step) for step in (1, 2))
    with np.errstate(over="ignore"):
        places = [np.uint64(place) for place in _PLACES]
        shingles = hashes * places[0] + first[0] * places[1] + second[0] * places[2]
    starts = np.zeros(len(hashes), bool)
    starts[offsets[:-1][lengths > 0]] = True
    kept = second[1] | (starts & ~second[1])
    counts = np.bincount(question[kept], minlength=len(lengths))
    return Shingles(shingles[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _following(
    hashes: np.ndarray, question: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of the word `step` words on (0 where the question ends), and where it is."""
    shifted = np.zeros_like(hashes)
    there = np.zeros(len(hashes), bool)
    if len(hashes) > step:
        there[:-step] = question[step:] == question[:-step]
        shifted[:-step] = np.where(there[:-step], hashes[step:], 0)
    return shifted, there


def _to_words(questions: pa.Array) -> pa.Array:
    """Return the questions' words, separated by blanks."""
    plain = pc.string_is_ascii(questions)
    if not pc.all(plain).as_py():
        odd = [_words_of(text) for text in questions.filter(pc.invert(plain)).to_pylist()]
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
    return pc.if_else(nothing, pc.replace_substring(questions, " ", "_"), trimmed)


def _words_of(text: str) -> str:
    spaced = _WITHOUT_SPACES.sub(r" \1 ", text.casefold())
    return " ".join("".join(c if _belongs_to_word(c) else " " for c in spaced).split()) or text


def _belongs_to_word(character: str) -> bool:
    """Letters, digits, the vowel signs and tone marks of many scripts, and signs like + and #."""
    return character.isalnum() or character in _SIGNS or unicodedata.category(character)[0] == "M"


def _hash_words(words: pa.Array) -> np.ndarray:
    """Return 64 bits of each word's MD5, the same on every machine."""
    encoded = words.dictionary_encode()
    with duckdb.connect() as con:
        con.register("vocabulary", pa.table({"word": encoded.dictionary}))
        query = "SELECT md5_number_lower(word) AS hash FROM vocabulary"
        hashes = con.sql(query).to_arrow_table().column("hash").to_numpy()
    return hashes[encoded.indices.to_numpy(zero_copy_only=False)]
