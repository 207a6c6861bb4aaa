"""What a student made up for of the loss between it, untrained, and what it is to replace."""

import math
from collections.abc import Mapping
from typing import Any

# Asked of the default recipe; a smaller share is said in the report, and blocks nothing.
ENOUGH_RECOVERED = 0.8


def measure_recovery(comparison: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the losses in nats a token, and the shares recovered by `distilled` and `ce`.

    `…_recovered` = (student − model) / (student − finetuned): 1 is as good as the fine-tuned model.
    `…_recovered_of_base` has the base in its place: what pruning alone cost. NaN where nothing was
    lost.
    """
    losses = {name: float(figures["loss"]) for name, figures in comparison.items()}
    found = {f"{name}_loss": loss for name, loss in losses.items()}
    for suffix, reference in (("", "finetuned"), ("_of_base", "base")):
        cost = losses["student"] - losses[reference]
        for model in ("distilled", "ce"):
            gained = losses["student"] - losses[model]
            found[f"{model}_recovered{suffix}"] = gained / cost if cost > 0 else math.nan
    return found


def explain_recovery(recovery: Mapping[str, float]) -> str:
    """Say in sentences how much the distilled student made up for, and against what."""
    m = recovery
    difference = m["ce_loss"] - m["distilled_loss"]
    verdict = "better" if difference > 0 else "worse"
    text = (
        f"The untrained student has a loss of {m['student_loss']:.3f} nats a token, base "
        f"{m['base_loss']:.3f}, fine-tuned model {m['finetuned_loss']:.3f}. Distilled it has "
        f"{m['distilled_loss']:.3f}: {m['distilled_recovered']:.0%} of what it lacked to the "
        f"fine-tuned model, {m['distilled_recovered_of_base']:.0%} of what it lacked to the base. "
        f"Plain cross-entropy reaches {m['ce_loss']:.3f} ({m['ce_recovered']:.0%}); distillation "
        f"is {abs(difference):.3f} {verdict}."
    )
    if not m["distilled_recovered"] >= ENOUGH_RECOVERED:
        text += (
            f" That is below {ENOUGH_RECOVERED:.0%}: too few steps or examples for what was cut "
            "away. Train for more steps (distillation.training) or keep more layers."
        )
    return text
