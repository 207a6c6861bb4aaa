"""What a student made up for, in shares of what it lacked."""

import math

import pytest

from ft_pipeline.evaluation.recovery import explain_recovery, measure_recovery

LOSSES = {"base": 3.0, "finetuned": 2.0, "student": 7.0, "ce": 3.5, "distilled": 2.5}


def recover(**losses: float) -> dict[str, float]:
    return measure_recovery({n: {"loss": loss} for n, loss in {**LOSSES, **losses}.items()})


def test_shares_are_of_the_distance_to_the_fine_tuned_model_and_to_the_base() -> None:
    found = recover()
    assert found["distilled_recovered"] == pytest.approx(0.9)  # (7 − 2.5) / (7 − 2)
    assert found["ce_recovered"] == pytest.approx(0.7)  # (7 − 3.5) / (7 − 2)
    assert found["distilled_recovered_of_base"] == pytest.approx(4.5 / 4)


def test_a_student_that_lacks_nothing_has_nothing_to_recover() -> None:
    assert math.isnan(recover(student=2.0)["distilled_recovered"])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, "1.000 worse than distillation"),
        ({"distilled": 3.6}, "0.100 better than distillation"),
        ({"distilled": 4.0}, "Less than 80% is recovered"),
    ],
)
def test_the_report_says_by_how_much(losses: dict[str, float], expected: str) -> None:
    assert expected in explain_recovery(recover(**losses))


def test_enough_is_not_complained_of() -> None:
    assert "Less than" not in explain_recovery(recover())
