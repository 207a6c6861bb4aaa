"""Templates: text with `{field}` placeholders; doubled braces stand for literal ones.

The quiz templates use the wording of the Llama 3.2 quiz guide. examples/render/templates.py parses
rendered quiz items back. `TEMPLATES["trivia"]["quiz_question"]` of one row:

    Generate a quiz question about Geography with easy difficulty.
    → Question: Which river flows through Paris?
      Correct Answer: Seine
      Incorrect Options: Loire, Rhône, Garonne
"""

import re
import string
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """The texts of prompt and completion, with `{field}` placeholders."""

    prompt: str
    completion: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields it needs, each once, in order."""
        return tuple(dict.fromkeys(find_fields(self.prompt) + find_fields(self.completion)))


QUIZ_ITEM = "Question: {question}\nCorrect Answer: {correct_answer}\nIncorrect Options: {options}"
QUIZ_QUESTION, QUIZ_SET = "quiz_question", "quiz_set"
# A set is several numbered items; its prompt has the number of them and their category.
QUIZ_SET_ITEM = QUIZ_ITEM.removeprefix("Question")
QUIZ_SET_PROMPT = (
    "Generate a set of {n} quiz questions about {category} with varying difficulty levels."
)

TEMPLATES: dict[str, dict[str, Template]] = {
    "trivia": {
        QUIZ_QUESTION: Template(
            "Generate a quiz question about {category} with {difficulty} difficulty.", QUIZ_ITEM
        ),
        QUIZ_SET: Template(QUIZ_SET_PROMPT.replace("{n}", ""), QUIZ_SET_ITEM),
        # A question alone may as well ask for a chain of thought.
        "answer": Template("Answer in a few words: {question}", "{correct_answer}"),
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


def find_fields(text: str) -> tuple[str, ...]:
    """Return the names of the `{field}` placeholders. Raises ValueError for a stray brace."""
    return tuple(name for name, _ in split_template(text) if name)


def split_template(text: str) -> list[tuple[str, str]]:
    """Return (field, "") and ("", literal) in order."""
    pieces = []
    for literal, field, spec, conversion in string.Formatter().parse(text):
        if literal:
            pieces.append(("", literal))
        if field is not None:
            if not re.fullmatch(r"[^\s{}\[\]!:]+", field) or spec or conversion:
                raise ValueError(
                    f"`{{{field}}}` is not a field name; double the braces to write them as text"
                )
            pieces.append((field, ""))
    return pieces
