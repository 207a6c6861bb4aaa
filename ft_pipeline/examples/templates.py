"""Templates: from items to prompt and completion, and back.

The wording of the quiz forms is that of the Llama 3.2 quiz guide. Metrics read a model's answer
with `parse_quiz_items`, the same parser that proves each training completion readable.

    Generate a quiz question about Geography with easy difficulty.
    → Question: Which river flows through Paris?
      Correct Answer: Seine
      Incorrect Options: Loire, Rhône, Garonne
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ft_pipeline.examples.parse import Reasoning, Trivia, is_boolean

QUIZ_PROMPT = "Generate a quiz question about {category} with {difficulty} difficulty."
QUIZ_SET_PROMPT = (
    "Generate a set of {n} quiz questions about {category} with varying difficulty levels."
)

_ITEM = re.compile(
    r"^Question(?: \d+)?: (?P<question>[^\n]*)\n"
    r"Correct Answer: (?P<answer>[^\n]*)\n"
    r"Incorrect Options: (?P<options>[^\n]*)$",
    re.MULTILINE,
)
_THOUGHTS = re.compile(r"^\s*<think>(?P<thoughts>.*?)</think>(?P<response>.*)$", re.DOTALL)


@dataclass(frozen=True)
class QuizItem:
    """A quiz question as text holds it."""

    question: str
    correct_answer: str
    incorrect_options: tuple[str, ...]


def render_quiz_question(item: Trivia) -> tuple[str, str]:
    """Render one question as (prompt, completion)."""
    prompt = QUIZ_PROMPT.format(category=item.category, difficulty=item.difficulty)
    return prompt, _render_item(item, "Question")


def render_quiz_set(items: Sequence[Trivia]) -> tuple[str, str]:
    """Render several questions of one category as (prompt, completion)."""
    prompt = QUIZ_SET_PROMPT.format(n=len(items), category=items[0].category)
    parts = [_render_item(item, f"Question {n}") for n, item in enumerate(items, start=1)]
    return prompt, "\n\n".join(parts)


def render_chain_of_thought(item: Reasoning) -> tuple[str, str]:
    """Render a reasoning item as (prompt, completion): `<think>…</think>`, then the response."""
    return item.question, f"<think>\n{item.thoughts}\n</think>\n\n{item.response}"


def parse_quiz_items(text: str) -> list[QuizItem]:
    """Find all quiz items in a text, complete ones only, in order."""
    return [
        QuizItem(
            question=match["question"].strip(),
            correct_answer=match["answer"].strip(),
            incorrect_options=tuple(o.strip() for o in _split_options(match["options"])),
        )
        for match in _ITEM.finditer(text)
    ]


def parse_chain_of_thought(text: str) -> Reasoning | None:
    """Split an answer into thoughts and response; None where `<think>` is missing or not closed."""
    match = _THOUGHTS.match(text)
    if match is None:
        return None
    return Reasoning("", match["thoughts"].strip(), match["response"].strip())


def is_readable(item: Trivia | Reasoning) -> bool:
    """Whether the rendered item reads back as the same item."""
    if isinstance(item, Reasoning):
        read = parse_chain_of_thought(render_chain_of_thought(item)[1])
        return read == Reasoning("", item.thoughts, item.response)
    expected = QuizItem(item.question, item.correct_answer, item.incorrect_answers)
    return parse_quiz_items(render_quiz_question(item)[1]) == [expected]


def expected_options(correct_answer: str) -> int:
    """Number of incorrect options that belong to an answer: one for true/false, else three."""
    return 1 if is_boolean(correct_answer) else 3


def _render_item(item: Trivia, label: str) -> str:
    return (
        f"{label}: {item.question}\n"
        f"Correct Answer: {item.correct_answer}\n"
        f"Incorrect Options: {_join_options(item.incorrect_answers)}"
    )


def _join_options(options: Sequence[str]) -> str:
    return ("; " if any("," in option for option in options) else ", ").join(options)


def _split_options(text: str) -> list[str]:
    return text.split("; ") if "; " in text else text.split(", ")
