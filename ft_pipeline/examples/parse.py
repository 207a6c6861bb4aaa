"""Parsers: from a row to a typed item, or the reason why it cannot be used.

Trivia(question="Which river flows through Paris?", correct_answer="Seine",
       incorrect_answers=("Loire", "Rhône", "Garonne"), category="Geography", difficulty="easy")
Reasoning(question="Tom has…", thoughts="First I…", response="He has 3 apples.")
"""

import ast
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ft_pipeline.examples.rows import Row, clean

REASONS = {
    "malformed_row": "the record does not have the header's number of fields, or is no JSON object",
    "empty_text": "a text that the prompt or completion needs is empty",
    "missing_answer": "there is no correct answer",
    "answer_among_wrong_ones": "the correct answer is also an incorrect one",
    "too_few_options": "fewer than three distinct incorrect answers, or not the other truth value",
    "duplicate": "the same identity columns as a row that is used",
    "not_renderable": "the rendered item does not read back as the same item",
    "too_few_for_a_set": "no other question of its category on its side, and sets only are asked",
}


@dataclass(frozen=True)
class Trivia:
    """A question with one correct answer."""

    question: str
    correct_answer: str
    incorrect_answers: tuple[str, ...]
    category: str
    difficulty: str


@dataclass(frozen=True)
class Reasoning:
    """A question with worked thoughts and a response."""

    question: str
    thoughts: str
    response: str


@dataclass(frozen=True)
class Rejected:
    """Why a row cannot be used: a code of REASONS."""

    reason: str


NEEDED_COLUMNS = {
    "trivia": ("category", "difficulty", "question", "correct_answer", "incorrect_answers"),
    "cot": ("Question", "Complex_CoT", "Response"),
}


def parse_row(parser: str, row: Row) -> Trivia | Reasoning | Rejected:
    """Parse a row by the parser of that name (`trivia` or `cot`)."""
    return parse_trivia(row) if parser == "trivia" else parse_cot(row)


def parse_trivia(row: Row) -> Trivia | Rejected:
    """Parse a row in the columns of the Open Trivia Database."""
    values = row.values
    question, correct = clean(values.get("question")), clean(values.get("correct_answer"))
    category, difficulty = clean(values.get("category")), clean(values.get("difficulty")).lower()
    if not (question and category and difficulty):
        return Rejected("empty_text")
    if not correct:
        return Rejected("missing_answer")
    incorrect = tuple(clean(option) for option in parse_list(values.get("incorrect_answers")))
    folded = {option.casefold() for option in incorrect if option}
    if correct.casefold() in folded:
        return Rejected("answer_among_wrong_ones")
    if is_boolean(correct):
        complete = folded == {"true", "false"} - {correct.casefold()}
    else:
        complete = len(folded) >= 3
    if not complete or len(folded) != len(incorrect):
        return Rejected("too_few_options")
    return Trivia(question, correct, incorrect, category, difficulty)


def parse_cot(row: Row) -> Reasoning | Rejected:
    """Parse a row in the columns of medical-o1-reasoning-SFT. Line breaks in thoughts are kept."""
    question = clean_lines(row.values.get("Question"))
    thoughts = clean_lines(row.values.get("Complex_CoT"))
    response = clean_lines(row.values.get("Response"))
    if not response:
        return Rejected("missing_answer")
    return (
        Reasoning(question, thoughts, response) if question and thoughts else Rejected("empty_text")
    )


def parse_list(value: Any) -> list[str]:
    """Read a list of answers given as a list, as JSON, or as a Python literal."""
    if isinstance(value, list):
        return ["" if item is None else str(item) for item in value]
    text = str(value).strip()
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if found is None:
            return []
        return parse_list(list(found) if isinstance(found, list | tuple) else [found])
    return []


def is_boolean(answer: str) -> bool:
    """Whether an answer is one of True and False."""
    return answer.casefold() in ("true", "false")


def clean_lines(text: object) -> str:
    """Clean each line of a text; runs of empty lines become one."""
    lines = [clean(line) for line in str("" if text is None else text).splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip()


def compute_group(question: str) -> str:
    """Return the id of a question for the split: 16 hex characters over its letters and digits.

    Questions that differ in case, punctuation or spacing only are one group and stay on one side.
    """
    letters = "".join(c for c in question.casefold() if c.isalnum()) or question
    return hashlib.sha256(letters.encode("utf-8")).hexdigest()[:16]
