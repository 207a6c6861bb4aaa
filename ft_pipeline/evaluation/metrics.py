"""Metrics on generated answers.

A quiz item is valid if it has a question, a correct answer, and three distinct wrong options
without the correct one among them; for true/false, exactly the other value. An answer is scored by
normalised exact match and token F1 (SQuAD, arXiv 1606.05250), a chain of thought on its response.
The two have separate figures: a short answer can be hit exactly, a sentence hardly ever.
"""

import math
import re
import string
from collections import Counter
from typing import Any

from ft_pipeline.config.recipe import Metrics
from ft_pipeline.examples.render.templates import (
    QuizItem,
    expected_options,
    parse_chain_of_thought,
    parse_quiz_items,
)

_SET_SIZE = re.compile(r"Generate a set of (\d+) quiz questions")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def is_valid_item(item: QuizItem, option_match: str = "casefold") -> bool:
    """Whether a quiz item can be used in a quiz unchanged."""

    def fold(text: str) -> str:
        return text.casefold() if option_match == "casefold" else text

    correct, wrong = fold(item.correct_answer), [fold(o) for o in item.incorrect_options if o]
    if not item.question or not correct:
        return False
    if correct.casefold() in ("true", "false"):
        return [o.casefold() for o in wrong] == [
            {"true": "false", "false": "true"}[correct.casefold()]
        ]
    needed = expected_options(item.correct_answer)
    return len(wrong) == needed and len(set(wrong)) == needed and correct not in wrong


def score_quiz(prompt: str, answer: str, metrics: Metrics) -> dict[str, float]:
    """Return the number of items asked for, found, and valid (at most the number asked for).

    A repeated item (same question, same correct answer) counts once.
    """
    match = _SET_SIZE.match(prompt)
    asked = int(match[1]) if match else 1
    items = parse_quiz_items(answer)
    valid_items = [item for item in items if is_valid_item(item, metrics.option_match)]
    distinct = {(i.question.casefold(), i.correct_answer.casefold()) for i in valid_items}
    valid = len(distinct)
    return {"items_asked": asked, "items_found": len(items), "items_valid": min(valid, asked)}


def score_chain_of_thought(answer: str, reference: str, metrics: Metrics) -> dict[str, float]:
    """Return whether `<think>…</think>` is closed, and exact match and token F1 of the response."""
    given, wanted = parse_chain_of_thought(answer), parse_chain_of_thought(reference)
    scored = score_answer(
        given.response if given else answer, wanted.response if wanted else reference, metrics
    )
    return {"think_closed": float(given is not None), **scored}


def score_answer(answer: str, reference: str, metrics: Metrics) -> dict[str, float]:
    """Return exact match and token F1 of a whole answer, both normalised."""
    found = normalize(answer, metrics.answer_normalization)
    expected = normalize(reference, metrics.answer_normalization)
    return {
        "exact_match": float(found == expected),
        "token_f1": token_f1(found, expected),
    }


def normalize(text: str, how: str) -> str:
    """`squad`: lower case, no punctuation, no articles, single spaces; `none`: stripped."""
    if how == "none":
        return text.strip()
    lowered = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def token_f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall over white-space tokens; two empty texts agree."""
    a, b = found.split(), expected.split()
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def summarize_scores(scores: list[dict[str, Any]]) -> dict[str, float]:
    """Return the shares over all scored answers; NaN if a task has no answer."""
    quiz = [s for s in scores if "items_asked" in s]
    cot = [s for s in scores if "think_closed" in s]
    answers = [s for s in scores if "exact_match" in s and "think_closed" not in s]
    asked = sum(s["items_asked"] for s in quiz)
    return {
        "valid_items_share": _ratio(sum(s["items_valid"] for s in quiz), asked),
        "well_formed_items_share": _ratio(
            sum(min(s["items_found"], s["items_asked"]) for s in quiz), asked
        ),
        "think_closed_share": _ratio(sum(s["think_closed"] for s in cot), len(cot)),
        "response_exact_match": _ratio(sum(s["exact_match"] for s in cot), len(cot)),
        "response_token_f1": _ratio(sum(s["token_f1"] for s in cot), len(cot)),
        "exact_match": _ratio(sum(s["exact_match"] for s in answers), len(answers)),
        "token_f1": _ratio(sum(s["token_f1"] for s in answers), len(answers)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
