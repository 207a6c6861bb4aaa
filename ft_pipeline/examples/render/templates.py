"""Render templates as SQL, and parse their completions back.

Metrics parse a model's answer with `parse_quiz_items`, in the form of the training completions
(QUIZ_ITEM in config/templates.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ft_pipeline.config.templates import split_template


@dataclass(frozen=True)
class QuizItem:
    """A quiz question parsed from text."""

    question: str
    correct_answer: str
    incorrect_options: tuple[str, ...]


@dataclass(frozen=True)
class Reasoning:
    """A text's thoughts and what follows them."""

    thoughts: str
    response: str


def to_sql(text: str, columns: Mapping[str, str]) -> str:
    """Return a DuckDB expression that renders a template; `columns` maps fields to columns."""
    parts = [columns[name] if name else _quote(literal) for name, literal in split_template(text)]
    return " || ".join(parts) or "''"


def _quote(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"


_ITEM = re.compile(
    r"^Question(?: \d+)?: (?P<question>[^\n]*)\n"
    r"Correct Answer: (?P<answer>[^\n]*)\n"
    r"Incorrect Options: (?P<options>[^\n]*)$",
    re.MULTILINE,
)
_THOUGHTS = re.compile(r"^\s*<think>(?P<thoughts>.*?)</think>(?P<response>.*)$", re.DOTALL)


def parse_quiz_items(text: str) -> list[QuizItem]:
    """Find all complete quiz items in a text, in order."""
    return [
        QuizItem(
            question=match["question"].strip(),
            correct_answer=match["answer"].strip(),
            incorrect_options=tuple(o.strip() for o in _split_options(match["options"])),
        )
        for match in _ITEM.finditer(text)
    ]


def parse_chain_of_thought(text: str) -> Reasoning | None:
    """Split an answer into thoughts and response; None if `<think>` is missing or not closed."""
    match = _THOUGHTS.match(text)
    if match is None:
        return None
    return Reasoning(match["thoughts"].strip(), match["response"].strip())


def is_boolean(answer: str) -> bool:
    """Whether an answer is True or False."""
    return answer.casefold() in ("true", "false")


def expected_options(correct_answer: str) -> int:
    """Number of incorrect options for an answer: one for true/false, otherwise three."""
    return 1 if is_boolean(correct_answer) else 3


def _split_options(text: str) -> list[str]:
    return text.split("; ") if "; " in text else text.split(", ")
