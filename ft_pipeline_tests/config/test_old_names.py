"""Recipes of older versions load, and say what their settings are called now."""

import logging
from typing import Any

import pytest

from ft_pipeline.base.settings import SettingsError
from ft_pipeline.config import old_names
from ft_pipeline.config.old_names import rename_old
from ft_pipeline.config.recipe import parse_recipe
from ft_pipeline_tests.conftest import TINY_RECIPE


def recipe(**examples: Any) -> dict[str, Any]:
    return TINY_RECIPE | {"examples": TINY_RECIPE["examples"] | examples}


def test_an_old_value_is_taken_as_the_new_one_with_a_note(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        old = parse_recipe(recipe(control_tokens="neutralize"), "mine.yaml", ("trivia", "cot"))
    new = parse_recipe(recipe(control_tokens="sanitize"), "mine.yaml", ("trivia", "cot"))
    assert old == new
    assert caplog.messages == [
        "mine.yaml: examples.control_tokens: `neutralize` is now called `sanitize`; please use "
        "the new name."
    ]


def test_an_old_field_goes_to_its_new_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(old_names, "OLD_FIELDS", {"training.rate": "training.optimizer.rate"})
    data: dict[str, Any] = {"training": {"rate": 1, "seed": 2}}
    rename_old(data, "mine.yaml")
    assert data == {"training": {"seed": 2, "optimizer": {"rate": 1}}}
    assert caplog.messages == [
        "mine.yaml: `training.rate` is now called `training.optimizer.rate`; please use the "
        "new name."
    ]


def test_a_field_by_both_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_names, "OLD_FIELDS", {"training.rate": "training.speed"})
    with pytest.raises(SettingsError, match=r"training\.rate is the old name of training\.speed"):
        rename_old({"training": {"rate": 1, "speed": 2}}, "mine.yaml")


@pytest.mark.parametrize("data", [None, [], "text", {"examples": None}, {"examples": []}])
def test_what_is_no_recipe_is_left_to_the_validation(data: Any) -> None:
    rename_old(data, "mine.yaml")
