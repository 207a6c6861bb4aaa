"""The number of steps, and what contradicts it."""

from typing import Any

import pytest

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Training
from ft_pipeline.config.steps import plan_steps


@pytest.mark.parametrize(
    ("settings", "examples", "an_epoch", "steps"),
    [
        # 100 ÷ 4 = 25 micro-batches, ÷ 4 = 6.25: seven steps, the last one short.
        ({"batch_size": 4, "gradient_accumulation": 4, "epochs": 3}, 100, 7, 21),
        ({"batch_size": 4, "gradient_accumulation": 1, "epochs": 0.5}, 100, 25, 13),
        ({"batch_size": 2, "gradient_accumulation": 4, "epochs": 1, "max_steps": 60}, 600, 75, 60),
        ({"batch_size": 64, "gradient_accumulation": 4, "epochs": 2}, 10, 1, 2),
    ],
)
def test_steps_are_those_of_the_trainer(
    settings: dict[str, Any], examples: int, an_epoch: int, steps: int
) -> None:
    plan = plan_steps(Training.model_validate(settings), examples)
    assert (plan.steps_an_epoch, plan.steps) == (an_epoch, steps)


def test_processes_share_an_epoch() -> None:
    settings = Training(batch_size=4, gradient_accumulation=2, epochs=1)
    assert plan_steps(settings, 64, processes=4).steps == 2
    assert plan_steps(settings, 64, processes=4).effective_batch == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup_steps": 100},
            "training.warmup_steps is 100, but this training only has 21 steps",
        ),
        ({"logging_steps": 11}, "logs every 11"),
        ({"best_checkpoint": True, "eval_steps": 50, "save_steps": 100}, "eval_steps is 50"),
    ],
)
def test_a_contradiction_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        plan_steps(Training.model_validate(settings), 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_steps": 300, "eval_steps": 200, "best_checkpoint": True}, "not a multiple"),
        ({"best_checkpoint": True}, "need `eval_steps`"),
        ({"early_stopping": 3}, "need `eval_steps`"),
        ({"warmup_steps": 100, "max_steps": 60}, "exceeds max_steps 60"),
        ({"method": "qlora", "quantization": "none"}, "not QLoRA"),
        ({"method": "full", "quantization": "nf4"}, "must be none"),
        ({"lora": {"layers": [5, 2]}}, "counted from 0"),
        ({"lora": {"target_modules": []}}, "target_modules"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Training.model_validate(settings)


def test_what_is_odd_is_noted() -> None:
    settings = Training(batch_size=2, gradient_accumulation=4, max_steps=60, save_steps=10)
    assert "sees 80% of them" in plan_steps(settings, 600).notes[0]
    killed = plan_steps(Training(save_steps=500), 100).notes
    assert any("starts over" in note for note in killed)
