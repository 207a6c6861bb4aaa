"""The number of optimizer steps of a training, computed before it starts."""

from dataclasses import dataclass
from math import ceil

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Training


@dataclass(frozen=True)
class StepPlan:
    """Steps and batches of a training; `notes` lists oddities that are not errors."""

    examples: int
    effective_batch: int
    steps_an_epoch: int
    steps: int
    warmup_steps: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {self.effective_batch} examples ({self.steps_an_epoch} steps "
            f"per pass over {self.examples} examples), {self.warmup_steps} of them warm-up"
        )


def plan_steps(settings: Training, examples: int, processes: int = 1) -> StepPlan:
    """Compute the steps: ceil(examples ÷ (batch × accumulation × processes)) × epochs.

    Raises PipelineError if warm-up, logging or evaluation intervals exceed the training.
    """
    micro_batches = ceil(examples / (settings.batch_size * processes))
    an_epoch = max(1, ceil(micro_batches / settings.gradient_accumulation))
    steps = settings.max_steps or ceil(settings.epochs * an_epoch)
    plan = StepPlan(
        examples,
        settings.batch_size * settings.gradient_accumulation * processes,
        an_epoch,
        steps,
        settings.warmup_steps,
        tuple(_find_oddities(settings, steps, an_epoch)),
    )
    _refuse_contradictions(settings, plan)
    return plan


def _refuse_contradictions(settings: Training, plan: StepPlan) -> None:
    if settings.warmup_steps >= plan.steps and settings.warmup_steps:
        raise PipelineError(
            f"training.warmup_steps is {settings.warmup_steps}, but this training only has "
            f"{plan}. The learning rate would never reach its peak. Lower warmup_steps, or train "
            "longer."
        )
    if plan.steps < 2 * settings.logging_steps:
        raise PipelineError(
            f"this training has {plan.steps} steps and logs every {settings.logging_steps}: too "
            "few logged losses to tell whether the model learns. Lower training.logging_steps, or "
            "train for more steps (training.epochs, training.max_steps)."
        )
    if settings.best_checkpoint and settings.eval_steps and settings.eval_steps > plan.steps:
        raise PipelineError(
            f"training.eval_steps is {settings.eval_steps}, but this training only has "
            f"{plan.steps} steps, so no evaluation could choose the best checkpoint. Lower "
            "eval_steps."
        )


def _find_oddities(settings: Training, steps: int, an_epoch: int) -> list[str]:
    notes = []
    if settings.max_steps and settings.max_steps < an_epoch:
        share = settings.max_steps / an_epoch
        notes.append(
            f"max_steps {settings.max_steps} ends before one pass over the examples ({an_epoch} "
            f"steps): the model sees {share:.0%} of them"
        )
    if settings.save_steps > steps:
        notes.append(
            f"save_steps {settings.save_steps} exceeds the {steps} steps, so a killed run starts "
            "over"
        )
    return notes
