"""Templates: from the fields of a row to prompt and completion, and back.

A template is text with `{field}` in it; braces are doubled to stand for themselves. The wording of
the quiz forms is that of the Llama 3.2 quiz guide. Metrics read a model's answer with
`parse_quiz_items`, the same form that each training completion has.

    Generate a quiz question about Geography with easy difficulty.
    → Question: Which river flows through Paris?
      Correct Answer: Seine
      Incorrect Options: Loire, Rhône, Garonne
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ft_pipeline.config.sections.examples import QUIZ_SET
from ft_pipeline.config.template_fields import find_fields, split_template


@dataclass(frozen=True)
class Template:
    """The texts of prompt and completion, with `{field}` placeholders."""

    prompt: str
    completion: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that it needs, each once, in order."""
        return tuple(dict.fromkeys(find_fields(self.prompt) + find_fields(self.completion)))


QUIZ_ITEM = "Question: {question}\nCorrect Answer: {correct_answer}\nIncorrect Options: {options}"
# A set is several numbered items; its prompt has the number of them and their category.
QUIZ_SET_ITEM = QUIZ_ITEM.removeprefix("Question")
QUIZ_SET_PROMPT = (
    "Generate a set of {n} quiz questions about {category} with varying difficulty levels."
)

TEMPLATES: dict[str, dict[str, Template]] = {
    "trivia": {
        "quiz_question": Template(
            "Generate a quiz question about {category} with {difficulty} difficulty.", QUIZ_ITEM
        ),
        QUIZ_SET: Template(QUIZ_SET_PROMPT.replace("{n}", ""), QUIZ_SET_ITEM),
        "answer": Template("{question}", "{correct_answer}"),
    },
    "qa": {
        "answer": Template("{question}", "{answer}"),
        "answer_with_rationale": Template("{question}", "{rationale}\n\nAnswer: {answer}"),
        "chain_of_thought": Template("{question}", "<think>\n{rationale}\n</think>\n\n{answer}"),
    },
    "cot": {
        "chain_of_thought": Template("{question}", "<think>\n{thoughts}\n</think>\n\n{response}"),
        "answer": Template("{question}", "{response}"),
    },
    "dialogue_label": {
        "dialogue_label": Template("{task}\n\n{dialogue}", "{label}"),
    },
    "prompt_completion": {"as_is": Template("{prompt}", "{completion}")},
    "messages": {"chat": Template("{prompt}", "{completion}")},
}


@dataclass(frozen=True)
class QuizItem:
    """A quiz question as text holds it."""

    question: str
    correct_answer: str
    incorrect_options: tuple[str, ...]


@dataclass(frozen=True)
class Reasoning:
    """A text's thoughts and what follows them."""

    thoughts: str
    response: str


def to_sql(text: str, columns: Mapping[str, str]) -> str:
    """Return a DuckDB expression that renders a template's text; `columns` gives each field's."""
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
    return Reasoning(match["thoughts"].strip(), match["response"].strip())


def is_boolean(answer: str) -> bool:
    """Whether an answer is one of True and False."""
    return answer.casefold() in ("true", "false")


def expected_options(correct_answer: str) -> int:
    """Number of incorrect options that belong to an answer: one for true/false, else three."""
    return 1 if is_boolean(correct_answer) else 3


def _split_options(text: str) -> list[str]:
    return text.split("; ") if "; " in text else text.split(", ")
