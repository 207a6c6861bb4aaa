"""Parsers: what to take from a row, how to read each value, and why a row cannot be used.

From this row, the parser `trivia` takes

    {"question": "Which river flows through Paris?", "correct_answer": "Seine",
     "incorrect_answers": "[\\"Loire\\", \\"Rhône\\"]", "category": "Geography",
     "difficulty": "Easy"}

the fields question, correct_answer, category, difficulty as cleaned text (difficulty in lower case)
and incorrect_answers as a list. Its rules are conditions in DuckDB's SQL over these fields.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ft_pipeline.examples.read.values import (
    TEXT,
    expand_conversations,
    read_answers,
    read_labels,
    read_line,
    read_lines,
    read_options,
    read_turns,
    read_verbatim,
    to_text,
)

REASONS = {
    "malformed_row": "the record has the wrong number of fields, or is not a JSON object",
    "undecodable": "it contains bytes that are neither UTF-8 nor clearly cp1252",
    "empty_text": "a text needed for the prompt or completion is empty",
    "missing_answer": "the answer, completion or label is missing",
    "unreadable_list": "a list is neither JSON, nor Python, nor delimited",
    "answer_among_wrong_ones": "the correct answer is also an incorrect one",
    "too_few_options": "fewer than three distinct wrong answers (true/false: not the other value)",
    "unknown_label": "the recipe does not list this label",
    "no_assistant_turn": "the messages do not end with a user turn and an assistant turn",
    "control_tokens": "a text contains a token that marks turns or thoughts in chat templates",
    "not_renderable": "the rendered item does not parse back to the same item",
    "forgotten": "its row_id is in data/forget.txt",
    "duplicate": "its identity columns equal another row's, and only one is kept",
    "near_duplicate": "its question is nearly the same as another row's, and only one is kept",
    "contaminated": "its question is nearly the same as a validation or held-out question",
    "not_sampled": "left out by the recipe's `limit`, `weight` or `shares`",
    "too_few_for_a_set": "alone in its category and split, and the recipe only asks for sets",
}

Convert = Callable[[Sequence[Any] | pa.Array, str | None], pa.Array]


@dataclass(frozen=True)
class Field:
    """One value taken from a row: how to read it, and its Arrow type."""

    read: Convert
    type: pa.DataType = TEXT


@dataclass(frozen=True)
class Parser:
    """What one kind of row holds. All expressions are DuckDB SQL.

    A file must have `fields`; missing `optional` ones are empty, unless `normal` derives them from
    others (`derivable`). `normal` replaces fields; only the rules need `derived`, and only the
    templates need `rendered`. `expand` turns the fields that were read into others. `rules` are
    (reason, condition) in order; `question` is the text that makes two rows count as the same.
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
