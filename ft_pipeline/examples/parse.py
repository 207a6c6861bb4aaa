"""Parsers: what is taken from a row, how each value is read, and why a row cannot be used.

The parser `trivia` takes from

    {"question": "Which river flows through Paris?", "correct_answer": "Seine",
     "incorrect_answers": "[\\"Loire\\", \\"Rhône\\"]", "category": "Geography",
     "difficulty": "Easy"}

the fields question, correct_answer, category, difficulty as cleaned text (difficulty in lower case)
and incorrect_answers as a list. Its rules are conditions in DuckDB's SQL over these fields.
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft_pipeline.examples.formats import to_list
from ft_pipeline.examples.text import (
    clean,
    clean_array,
    clean_lines,
    clean_verbatim,
    replace_half_characters,
)

REASONS = {
    "malformed_row": "the record does not have the header's number of fields, or is no JSON object",
    "undecodable": "it holds bytes that are neither UTF-8 nor with certainty cp1252",
    "empty_text": "a text that the prompt or completion needs is empty",
    "missing_answer": "there is no answer, completion or label",
    "unreadable_list": "a list is neither JSON nor Python nor delimited",
    "answer_among_wrong_ones": "the correct answer is also an incorrect one",
    "too_few_options": "fewer than three distinct incorrect answers, or not the other truth value",
    "unknown_label": "the label is not among those that the recipe names",
    "no_assistant_turn": "the messages do not end with a user's turn and an assistant's",
    "control_tokens": "a text holds a token that marks turns or thoughts in chat templates",
    "not_renderable": "the rendered item does not read back as the same item",
    "forgotten": "its row_id is in data/forget.txt",
    "duplicate": "the same identity columns as another row, of which one is kept",
    "near_duplicate": "its question is nearly that of another row, of which one is kept",
    "contaminated": "its question is nearly one of the validation side or of a held-out file",
    "not_sampled": "left out by the recipe's `limit` or `weight`",
    "too_few_for_a_set": "no other question of its category on its side, and sets only are asked",
}

TEXT = pa.string()
# A JSON list of texts without escapes, with the blanks that Python's json puts.
_SIMPLE_LIST = r'^\["[^"\\]*(?:", "[^"\\]*)*"\]$'
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
# How numpy prints an array of texts: without commas.
_NUMPY_LIST = re.compile(rf"\[\s*(?:{_QUOTED.pattern})(?:\s+(?:{_QUOTED.pattern}))+\s*\]")
Convert = Callable[[Sequence[Any] | pa.Array, str | None], pa.Array]


@dataclass(frozen=True)
class Field:
    """One value taken from a row: how it is read, and its Arrow type."""

    read: Convert
    type: pa.DataType = TEXT


@dataclass(frozen=True)
class Parser:
    """What one kind of row holds. All expressions are DuckDB's SQL.

    `fields` a file must have; `optional` ones are empty where it has not, unless `normal` makes
    them of others (`derivable`). `normal` replaces fields, `derived` are needed by the rules alone,
    `rendered` by the templates alone. `expand` makes other fields of those that were read. `rules`
    are (reason, condition) in order; `question` is the text by which two rows count as the same.
    """

    fields: dict[str, Field]
    optional: dict[str, Field]
    question: str
    rules: tuple[tuple[str, str], ...]
    normal: dict[str, str] = field(default_factory=dict)
    derived: dict[str, str] = field(default_factory=dict)
    rendered: dict[str, str] = field(default_factory=dict)
    derivable: tuple[str, ...] = ()
    expand: Callable[[dict[str, pa.Array]], dict[str, pa.Array]] | None = None


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
    """Read lists of short texts; null where a list cannot be read.

    Lists that are plainly quoted JSON go through Arrow, any other through `parse_list`.
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
    """Read answers of several lines; of a list of accepted answers the first."""
    if isinstance(values, pa.Array) and delimiter is None:
        looks_like_list = pc.starts_with(values, "[")
        if not pc.any(looks_like_list).as_py():
            return read_lines(values)
        values = values.to_pylist()
    return read_lines([_first(value, delimiter) for value in values])


def read_turns(values: Sequence[Any] | pa.Array, delimiter: str | None = None) -> pa.Array:
    """Read dialogues: text, or a list of turns, one a line as `speaker: text`."""
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
    """Return one way to write a label: `1` for 1.0 and True, `0` for 0.0 and False."""
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
    """Read values that make a row the same row: cleaned texts; lists however they are written."""
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


def parse_messages(value: Any) -> list[tuple[str, str]] | None:
    """Read a chat as (role, text) pairs; None where it is none.

    Takes `role`/`content` (OpenAI), `from`/`value` (ShareGPT) and `speaker`/`text`.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
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
    if value is None:
        return None
    if type(value) is str:
        return replace_half_characters(value)
    try:
        if isinstance(value, list | dict):
            return replace_half_characters(json.dumps(value, ensure_ascii=False, default=str))
        return replace_half_characters(str(value))
    except (TypeError, ValueError):  # keys that JSON cannot have, a number of thousands of digits
        return None


LINE, LINES, VERBATIM = Field(read_line), Field(read_lines), Field(read_verbatim)
_AS_BOOLEAN = "CASE lower({0}) WHEN 'true' THEN 'True' WHEN 'false' THEN 'False' ELSE {0} END"
_JOINED = "array_to_string(incorrect_answers, chr(31))"

PARSERS: dict[str, Parser] = {
    "trivia": Parser(
        fields={
            "question": LINE,
            "correct_answer": LINE,
            "incorrect_answers": Field(read_options, pa.list_(pa.string())),
        },
        optional={"category": LINE, "difficulty": LINE},
        question="question",
        normal={
            "difficulty": "lower(difficulty)",
            "correct_answer": _AS_BOOLEAN.format("correct_answer"),
        },
        derived={
            "folded": "list_transform(incorrect_answers, lambda x: lower(x))",
            "joined": _JOINED,
        },
        rules=(
            ("empty_text", "question = ''"),
            ("missing_answer", "correct_answer = ''"),
            ("unreadable_list", "incorrect_answers IS NULL"),
            ("answer_among_wrong_ones", "list_contains(folded, lower(correct_answer))"),
            (
                "too_few_options",
                "CASE WHEN correct_answer IN ('True', 'False') "
                "THEN len(folded) <> 1 OR folded[1] NOT IN ('true', 'false') "
                "WHEN len(folded) = 3 THEN '' IN (folded[1], folded[2], folded[3]) "
                "OR folded[1] IN (folded[2], folded[3]) OR folded[2] = folded[3] "
                "ELSE len(folded) < 3 OR list_contains(folded, '') "
                "OR len(list_distinct(folded)) <> len(folded) END",
            ),
            # Options are joined by "; " where one holds a comma, else by ", ", and split again.
            (
                "not_renderable",
                "contains(joined, '; ') OR (len(folded) = 1 AND contains(joined, ', '))",
            ),
        ),
        rendered={
            "options": f"replace({_JOINED}, chr(31), "
            f"CASE WHEN contains({_JOINED}, ',') THEN '; ' ELSE ', ' END)",
        },
    ),
    "qa": Parser(
        fields={"question": LINES, "answer": Field(read_answers)},
        optional={"rationale": LINES, "category": LINE, "difficulty": LINE},
        question="question",
        derivable=("rationale",),
        normal={
            # GSM8K puts the steps before the result: `… #### 42`.
            "rationale": "CASE WHEN rationale = '' AND contains(answer, '####') "
            "THEN trim(split_part(answer, '####', 1), E' \\n') ELSE rationale END",
            "answer": "CASE WHEN contains(answer, '####') "
            "THEN trim(split_part(answer, '####', -1), E' \\n') ELSE answer END",
        },
        rules=(("empty_text", "question = ''"), ("missing_answer", "answer = ''")),
    ),
    "cot": Parser(
        fields={"question": LINES, "thoughts": LINES, "response": LINES},
        optional={"category": LINE, "difficulty": LINE},
        question="question",
        rules=(
            ("missing_answer", "response = ''"),
            ("empty_text", "question = '' OR thoughts = ''"),
        ),
    ),
    "dialogue_label": Parser(
        fields={"dialogue": Field(read_turns), "label": Field(read_labels)},
        optional={"category": LINE},
        question="dialogue",
        rules=(("empty_text", "dialogue = ''"), ("missing_answer", "label = ''")),
    ),
    # The test questions of `examples.held_out`.
    "held_out": Parser(fields={"question": LINES}, optional={}, question="question", rules=()),
    "prompt_completion": Parser(
        fields={"prompt": VERBATIM, "completion": VERBATIM},
        optional={"category": LINE, "difficulty": LINE},
        question="prompt",
        rules=(("empty_text", "prompt = ''"), ("missing_answer", "completion = ''")),
    ),
    "messages": Parser(
        fields={"messages": Field(lambda values, delimiter: to_text(values))},
        optional={"category": LINE},
        question="asked",
        expand=expand_conversations,
        rules=(
            ("no_assistant_turn", "prompt IS NULL"),
            ("empty_text", "prompt = ''"),
            ("missing_answer", "completion = ''"),
        ),
    ),
}
