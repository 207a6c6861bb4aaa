"""How to read one value of a row: text of one or several lines, lists, dialogues, labels, chats.

    read_lists(["[\\"Loire\\", \\"Rhône\\"]", "Po|Rhein"])  →  [["Loire", "Rhône"], ["Po", "Rhein"]]

Each takes a column as Python values or as an Arrow array of text, and returns an Arrow array.
"""

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.examples.read.formats import to_list
from ft_pipeline.examples.read.text import (
    clean,
    clean_array,
    clean_lines,
    clean_verbatim,
    replace_half_characters,
)

TEXT = pa.string()
# A JSON list of texts without escapes, with the blanks that Python's json puts.
_SIMPLE_LIST = r'^\["[^"\\]*(?:", "[^"\\]*)*"\]$'
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
# How numpy prints an array of texts: without commas.
_NUMPY_LIST = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]")


def read_line(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read texts of one line."""
    return clean_array(to_text(values), clean)


def read_lines(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read texts of several lines."""
    return clean_array(to_text(values), clean_lines)


def read_verbatim(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read texts whose indentation counts, such as code."""
    return clean_array(to_text(values), clean_verbatim)


def read_lists(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read lists of short texts; null if a list cannot be read.

    Plainly quoted JSON lists go through Arrow, all others through `parse_list`.
    """
    if not isinstance(values, pa.Array):
        return _clean_lists(pa.array([parse_list(v, delimiter) for v in values], pa.list_(TEXT)))
    simple = pc.fill_null(pc.match_substring_regex(values, _SIMPLE_LIST), False)
    fast = pc.split_pattern(pc.utf8_slice_codeunits(values.filter(simple), 2, -2), '", "')
    rest = values.filter(pc.invert(simple)).to_pylist()
    slow = pa.array([parse_list(value, delimiter) for value in rest], pa.list_(TEXT))
    both = pa.concat_arrays([_clean_lists(fast), _clean_lists(slow)])
    if not len(slow):
        return both
    is_simple = simple.to_numpy(zero_copy_only=False)
    place = np.where(is_simple, is_simple.cumsum() - 1, len(fast) + (~is_simple).cumsum() - 1)
    return both.take(pa.array(place))


def read_options(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read lists of answers; truth values are written `True` and `False`."""
    lists = read_lists(values, delimiter)
    texts = lists.values
    odd = pc.is_in(texts, pa.array(["TRUE", "true", "FALSE", "false"]))
    if pc.any(odd).as_py():
        capital = pc.utf8_capitalize(texts.filter(odd))
        texts = pc.replace_with_mask(texts, odd, capital)
        lists = pa.ListArray.from_arrays(lists.offsets, texts, mask=lists.is_null())
    return lists


def read_answers(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read answers of several lines; from a list of accepted answers, the first."""
    if isinstance(values, pa.Array) and delimiter is None:
        looks_like_list = pc.starts_with(values, "[")
        if not pc.any(looks_like_list).as_py():
            return read_lines(values)
        values = values.to_pylist()
    return read_lines([_first(value, delimiter) for value in values])


def read_turns(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read dialogues: text, or a list of turns, one per line as `speaker: text`."""
    if (
        isinstance(values, pa.Array)
        and not pc.any(pc.match_substring_regex(values, r"^\s*[\[{]")).as_py()
    ):
        return read_lines(values)
    shown = []
    for value in to_list(values):
        turns = parse_messages(value)
        shown.append(
            value if turns is None else "\n".join(f"{role}: {text}" for role, text in turns)
        )
    return read_lines(shown)


def read_labels(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read labels as text: 1, 1.0 and True are `1`, 0, 0.0 and False are `0`."""
    return pa.array([normalize_label(value) for value in read_line(values).to_pylist()], TEXT)


def normalize_label(label: str) -> str:
    """Return the canonical form of a label: `1` for 1.0 and True, `0` for 0.0 and False."""
    numbers = {"true": "1", "false": "0", "1.0": "1", "0.0": "0"}
    return numbers.get(label.strip().lower(), label.strip())


def expand_conversations(fields: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Turn chats into `prompt` (the last turn but one, the user's), `completion` (the last, the
    assistant's), `history` (JSON, the turns before) and `asked` (all that came before the
    completion). All are null where it is no such chat.
    """
    split = [_split_chat(value) for value in fields["messages"].to_pylist()]
    names = ("history", "prompt", "completion", "asked")
    others = {name: array for name, array in fields.items() if name != "messages"}
    return others | {
        name: pa.array([chat and chat[i] for chat in split], TEXT) for i, name in enumerate(names)
    }


def to_text(values: Sequence[Any] | pa.Array) -> pa.Array:
    """Return values as strings: numbers and truth values as written, nested ones as JSON."""
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        return pa.array([_show(value) for value in values], pa.string())


def read_identity(values: Sequence[Any] | pa.Array) -> pa.Array:
    """Read values that identify a row: cleaned texts; lists however they are written."""
    if isinstance(values, pa.Array):
        if not pc.any(pc.starts_with(values, "[")).as_py():
            return read_line(values)
        values = values.to_pylist()
    return read_line([_flatten(value) for value in values])


def _flatten(value: Any) -> Any:
    listed = isinstance(value, list | tuple) or (isinstance(value, str) and value[:1] == "[")
    items = parse_list(value) if listed else None
    return value if items is None else " | ".join(clean(item) for item in items)


def parse_list(value: Any, delimiter: str | None = None) -> list[str] | None:
    """Read a list given as a list, as JSON, as a Python literal, or delimited; None if broken."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return ["" if item is None else _show(item) or "" for item in value]
    if isinstance(value, dict):
        return [_show(item) or "" for item in value.values()]
    if isinstance(value, set | frozenset):
        return sorted(_show(item) or "" for item in value)
    text = replace_half_characters(str(value).strip())
    if text[:1] in ("[", "(", "{", '"', "'") or text in ("null", "None", ""):
        if not text:
            return []
        if _NUMPY_LIST.fullmatch(text):
            return [str(ast.literal_eval(item)) for item in _QUOTED.findall(text)]
        for read in (_read_json, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            nested = isinstance(found, list | tuple | dict | set | frozenset | None)
            return parse_list(found if nested else [found])
        if text[0] in "[{" and delimiter is None:
            return None
    if delimiter is None:
        delimiter = next((d for d in ("|", ";", ",") if d in text), None)
    return [text] if delimiter is None else [part.strip() for part in text.split(delimiter)]


def _read_json(text: str) -> Any:
    return json.loads(text, strict=False)  # line breaks inside texts are certain


def unpack_json(value: Any) -> Any:
    """Parse a JSON text, None if it is not valid; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def parse_messages(value: Any) -> list[tuple[str, str]] | None:
    """Read a chat as (role, text) pairs; None if it is not a chat.

    Takes `role`/`content` (OpenAI), `from`/`value` (ShareGPT) and `speaker`/`text`.
    """
    value = unpack_json(value)
    if isinstance(value, dict):
        value = next((v for v in value.values() if isinstance(v, list)), None)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    pairs = []
    for turn in value:
        role = next((turn[k] for k in ("role", "from", "speaker") if turn.get(k)), None)
        text = next(
            (turn[k] for k in ("content", "value", "text") if turn.get(k) is not None), None
        )
        if role is None or not isinstance(text, str):
            return None
        pairs.append((str(role), text))
    return pairs


_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def _split_chat(value: Any) -> tuple[str, str, str, str] | None:
    pairs = parse_messages(value) or []
    turns = [(_ROLES.get(role.lower(), role.lower()), clean_verbatim(text)) for role, text in pairs]
    if len(turns) < 2 or turns[-1][0] != "assistant" or turns[-2][0] != "user":
        return None
    history = [{"role": role, "content": text} for role, text in turns[:-2]]
    asked = "\n".join(text for _, text in turns[:-1])
    return json.dumps(history, ensure_ascii=False), turns[-2][1], turns[-1][1], asked


def _first(value: Any, delimiter: str | None) -> Any:
    listed = isinstance(value, list | tuple) or (isinstance(value, str) and value.startswith("["))
    if not listed and delimiter is None:
        return value
    found = parse_list(value, delimiter)
    return value if found is None else next((item for item in found if item.strip()), "")


def _clean_lists(lists: pa.Array) -> pa.Array:
    inner = clean_array(lists.values)
    return pa.ListArray.from_arrays(lists.offsets, inner, mask=lists.is_null())


def _show(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None  # NaN is how pandas writes a missing value
    if type(value) is str:
        return replace_half_characters(value)
    try:
        if isinstance(value, list | dict):
            return replace_half_characters(json.dumps(value, ensure_ascii=False, default=str))
        return replace_half_characters(str(value))
    except (TypeError, ValueError):  # keys that JSON cannot have, a number of thousands of digits
        return None
