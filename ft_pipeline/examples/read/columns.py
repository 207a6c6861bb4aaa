"""Find the column of a file that holds what a parser or template asks for.

A column is looked up by the source's declared aliases, then by its own name, then by the common
names below; first as written, then ignoring case. `answer.value` reaches into a nested column.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ft_pipeline.base.errors import PipelineError, suggest
from ft_pipeline.examples.read.values import unpack_json

WELL_KNOWN: dict[str, tuple[str, ...]] = {
    "question": ("question_text", "questions", "query", "problem", "instruction", "input", "q"),
    "correct_answer": ("correct", "right_answer", "answer_text", "answer"),
    "incorrect_answers": ("incorrect", "wrong_answers", "distractors", "incorrect_options"),
    "category": ("category_name", "topic", "subject", "theme"),
    "difficulty": ("difficulty_level", "level"),
    "answer": ("answers", "answer_text", "correct_answer", "response", "output", "target", "a"),
    "rationale": ("explanation", "reasoning", "solution", "cot", "chain_of_thought", "r"),
    "thoughts": ("complex_cot", "chain_of_thought", "reasoning", "think", "cot", "rationale"),
    "response": ("final_response", "answer", "output", "completion"),
    "dialogue": ("dialog", "conversation", "transcript", "text"),
    "label": ("labels", "class", "target", "is_scam"),
    "prompt": ("instruction", "input", "question", "query"),
    "completion": ("response", "output", "answer", "target"),
    "messages": ("conversations", "conversation", "chat", "turns"),
}

# Sets of columns that are taken together where a file has all of them.
SHAPES: tuple[dict[str, str], ...] = (
    {"question": "Question", "thoughts": "Complex_CoT", "response": "Response"},
)

Aliases = Mapping[str, str | tuple[str, ...]]


def find_column(name: str, found: Sequence[str], aliases: Aliases) -> str | None:
    """Return the column of the file (or its path, `answer.value`) that holds `name`, or None."""
    declared = aliases.get(name, ())
    candidates = (declared,) if isinstance(declared, str) else declared
    exact = next((c for c in (*candidates, name) if has_column(c, found)), None)
    if exact is not None:
        return exact
    folded = {_fold(column): column for column in reversed(found)}
    known = (*candidates, name, *WELL_KNOWN.get(name, ()))
    return next((folded[_fold(c)] for c in known if _fold(c) in folded), None)


def _fold(column: str) -> str:
    return column.strip().casefold().replace(" ", "_")


def has_column(path: str, found: Sequence[str]) -> bool:
    """Say whether a column, or the column that a dotted path starts with, exists."""
    return path in found or ("." in path and path.split(".")[0] in found)


def resolve_columns(
    where: str,
    needed: Sequence[str],
    optional: Sequence[str],
    found: Sequence[str],
    aliases: Aliases,
) -> dict[str, str]:
    """Return the file's column for each name. Raises PipelineError if a needed one is missing."""
    for shape in SHAPES:
        if set(shape) <= set(needed) and set(shape.values()) <= set(found):
            aliases = {**shape, **aliases}
    columns = {name: find_column(name, found, aliases) for name in (*needed, *optional)}
    for name in needed:
        if columns[name] is None:
            raise PipelineError(
                f"{where}: no column `{name}`. Found: {', '.join(found) or 'none'}. Needed: "
                f"{', '.join(needed)}.{suggest(name, tuple(found))} If the column has another "
                f"name, declare `aliases: {{{name}: <its name>}}` for the source in sources.yaml; "
                "if the file has no header line, declare `format.header`."
            )
    return {name: column for name, column in columns.items() if column is not None}


def pick(columns: Mapping[str, Any], path: str) -> Any:
    """Return a column, or what a dotted path finds in each of its (nested or JSON) values."""
    if path in columns:
        return columns[path]
    first, *rest = path.split(".")
    values = columns[first]
    return [
        _reach(value, rest)
        for value in (values if isinstance(values, list) else values.to_pylist())
    ]


def _reach(value: Any, path: Sequence[str]) -> Any:
    for part in path:
        value = unpack_json(value)
        value = value.get(part) if isinstance(value, dict) else None
    return value
