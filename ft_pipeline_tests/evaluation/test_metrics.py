"""What counts as a valid quiz item, and the known values of exact match and token F1."""

import math

import pytest

from ft_pipeline.config.recipe import Metrics
from ft_pipeline.evaluation.metrics import (
    is_valid_item,
    normalize,
    score_chain_of_thought,
    score_quiz,
    summarize_scores,
    token_f1,
)
from ft_pipeline.examples.render.templates import QuizItem

ONE = "Generate a quiz question about Geography with easy difficulty."
THREE = "Generate a set of 3 quiz questions about Geography with varying difficulty levels."
VALID = "Question: Which?\nCorrect Answer: a\nIncorrect Options: b, c, d"
FIVE = "\n\n".join(VALID.replace("Which", f"Which {n}") for n in range(5))
INVALID = "Question: Which?\nCorrect Answer: a\nIncorrect Options: a, b, c"


@pytest.mark.parametrize(
    ("answer", "options", "valid"),
    [
        ("a", ("b", "c", "d"), True),
        ("a", ("b", "c"), False),
        ("a", ("b", "c", "d", "e"), False),
        ("a", ("b", "c", "c"), False),
        ("a", ("b", "c", "C"), False),
        ("a", ("b", "c", ""), False),
        ("a", ("a", "b", "c"), False),
        ("a", ("A", "b", "c"), False),
        ("", ("b", "c", "d"), False),
        ("True", ("False",), True),
        ("false", ("TRUE",), True),
        ("True", ("True",), False),
        ("True", ("No",), False),
        ("True", ("False", "Maybe"), False),
        ("True", ("False", "Maybe", "Never"), False),
        ("Yes", ("No",), False),
    ],
)
def test_an_item_is_valid_where_it_can_be_used_in_a_quiz(
    answer: str, options: tuple[str, ...], valid: bool
) -> None:
    assert is_valid_item(QuizItem("Which?", answer, options)) is valid


def test_an_item_without_a_question_is_not_valid() -> None:
    assert not is_valid_item(QuizItem("", "a", ("b", "c", "d")))


@pytest.mark.parametrize(("answer", "options"), [("a", ("b", "c", "C")), ("a", ("A", "b", "c"))])
def test_options_that_differ_in_case_are_other_options_where_the_match_is_exact(
    answer: str, options: tuple[str, ...]
) -> None:
    assert is_valid_item(QuizItem("Which?", answer, options), "exact")


@pytest.mark.parametrize("answer", ["True", "TRUE", "true"])
def test_true_and_false_have_any_case_where_the_match_is_exact(answer: str) -> None:
    assert is_valid_item(QuizItem("Which?", answer, ("False",)), "exact")


@pytest.mark.parametrize(
    ("prompt", "answer", "asked", "found", "valid"),
    [
        pytest.param(ONE, VALID, 1, 1, 1, id="one asked, one valid"),
        pytest.param(ONE, INVALID, 1, 1, 0, id="one asked, none valid"),
        pytest.param(ONE, "Paris", 1, 0, 0, id="one asked, none found"),
        pytest.param(ONE, f"{VALID}\n\n{VALID}", 1, 2, 1, id="one asked, two given"),
        pytest.param(THREE, f"{VALID}\n\n{INVALID}", 3, 2, 1, id="three asked, two given"),
        pytest.param(THREE, FIVE, 3, 5, 3, id="three asked, five given"),
        pytest.param(THREE, f"{VALID}\n\n{VALID}", 3, 2, 1, id="three asked, one repeated"),
        pytest.param(THREE, "", 3, 0, 0, id="three asked, no answer"),
    ],
)
def test_a_quiz_answer_is_scored_by_the_items_that_were_asked_for(
    prompt: str, answer: str, asked: int, found: int, valid: int
) -> None:
    assert score_quiz(prompt, answer, Metrics()) == {
        "items_asked": asked,
        "items_found": found,
        "items_valid": valid,
    }


def test_the_recipes_option_match_decides_what_is_valid() -> None:
    answer = "Question: Which?\nCorrect Answer: a\nIncorrect Options: A, b, c"
    by_match = {
        match: score_quiz(ONE, answer, Metrics(option_match=match))["items_valid"]
        for match in ("casefold", "exact")
    }
    assert by_match == {"casefold": 0, "exact": 1}


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("The Eiffel  Tower!", "squad", "eiffel tower"),
        ("a theory of an ant", "squad", "theory of ant"),
        ("it's 3.5", "squad", "its 35"),
        ("A, B; the C.", "squad", "b c"),
        ("", "squad", ""),
        (" The Eiffel  Tower! ", "none", "The Eiffel  Tower!"),
    ],
)
def test_texts_are_normalised_as_squad_does(text: str, how: str, expected: str) -> None:
    assert normalize(text, how) == expected


@pytest.mark.parametrize(
    ("found", "expected", "f1"),
    [
        ("eiffel tower", "eiffel tower", 1.0),
        ("eiffel", "eiffel tower", 2 / 3),  # precision 1, recall 1/2: 2 * 1 * 1/2 / (1 + 1/2)
        ("b a a", "a b b", 2 / 3),  # common: a once, b once; 2 * 2 / (3 + 3)
        ("x y", "a b c", 0.0),
        ("a b c d", "a", 0.4),  # precision 1/4, recall 1: 2 * 1/4 / (5/4)
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
    ],
)
def test_token_f1_has_its_known_values(found: str, expected: str, f1: float) -> None:
    assert token_f1(found, expected) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "closed", "exact", "f1"),
    [
        pytest.param("<think>other</think> The apples: 3.", 1, 1, 1.0, id="closed and right"),
        pytest.param("<think>a</think>3 apples", 1, 0, 1.0, id="other order"),
        pytest.param("<think>a</think>3 pears", 1, 0, 0.5, id="half of the tokens"),
        pytest.param("The apples: 3", 0, 1, 1.0, id="no thoughts"),
        # think, apples, 3 against apples, 3: 2 * 2 / (3 + 2)
        pytest.param("<think> apples 3", 0, 0, 0.8, id="not closed"),
        pytest.param("<think>apples 3</think>", 1, 0, 0.0, id="no response"),
    ],
)
def test_a_chain_of_thought_is_scored_on_its_response(
    answer: str, closed: float, exact: float, f1: float
) -> None:
    reference = "<think>\n1 + 2\n</think>\n\nThe apples: 3"
    scores = score_chain_of_thought(answer, reference, Metrics())
    assert scores == {
        "think_closed": closed,
        "exact_match": exact,
        "token_f1": pytest.approx(f1),
    }


def test_without_normalisation_case_and_punctuation_count() -> None:
    metrics = Metrics(answer_normalization="none")
    scores = score_chain_of_thought("<think>a</think>Three", "<think>a</think>three", metrics)
    assert scores == {"think_closed": 1.0, "exact_match": 0.0, "token_f1": 0.0}


def test_scores_are_summed_over_the_items_asked_for() -> None:
    quiz = [
        {"items_asked": 1, "items_found": 2, "items_valid": 1},  # the second item was not asked for
        {"items_asked": 3, "items_found": 2, "items_valid": 1},
    ]
    thoughts = [
        {"think_closed": 1.0, "exact_match": 1.0, "token_f1": 1.0},
        {"think_closed": 0.0, "exact_match": 0.0, "token_f1": 0.5},
    ]
    answers = [{"exact_match": 0.0, "token_f1": f1} for f1 in (0.0, 0.3, 0.6)]
    answers.append({"exact_match": 1.0, "token_f1": 1.0})
    assert summarize_scores([*quiz, *thoughts, *answers]) == {
        "valid_items_share": 2 / 4,
        "well_formed_items_share": 3 / 4,
        "think_closed_share": 0.5,
        "response_exact_match": 0.5,
        "response_token_f1": 0.75,
        "exact_match": 1 / 4,
        "token_f1": pytest.approx(1.9 / 4),
    }


def test_a_share_of_nothing_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in summarize_scores([]).values())


def test_a_task_without_an_answer_has_no_share_beside_one_that_has() -> None:
    summary = summarize_scores([{"items_asked": 2, "items_found": 0, "items_valid": 0}])
    assert summary["valid_items_share"] == 0.0
    assert math.isnan(summary["exact_match"])
