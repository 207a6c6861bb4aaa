"""How much of the loss gap to the model it replaces a trained student recovers."""

import math
from collections.abc import Mapping
from typing import Any

# Asked of the default recipe; a smaller share is said in the report, and blocks nothing.
ENOUGH_RECOVERED = 0.8


def measure_recovery(comparison: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the losses in nats per token, and the shares recovered by `distilled` and `ce`.

    `…_recovered` = (student − model) / (student − finetuned): 1 is as good as the fine-tuned model.
    `…_recovered_of_base` uses the base instead: what pruning alone cost. NaN if nothing was lost.
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
    """Describe how much of the loss gap the distilled student recovers, and compared with what."""
    m = recovery
    difference = m["ce_loss"] - m["distilled_loss"]
    verdict = "worse" if difference > 0 else "better"
    text = (
        f"Loss in nats per token: untrained student {m['student_loss']:.3f}, base "
        f"{m['base_loss']:.3f}, fine-tuned model {m['finetuned_loss']:.3f}. Distillation brings "
        f"the student to {m['distilled_loss']:.3f}; that recovers {m['distilled_recovered']:.0%} "
        f"of its loss gap to the fine-tuned model, and {m['distilled_recovered_of_base']:.0%} of "
        f"its gap to the base. Plain cross-entropy reaches {m['ce_loss']:.3f} "
        f"({m['ce_recovered']:.0%}), {abs(difference):.3f} {verdict} than distillation."
    )
    if not m["distilled_recovered"] >= ENOUGH_RECOVERED:
        text += (
            f" Less than {ENOUGH_RECOVERED:.0%} is recovered: too few steps or examples for what "
            "was pruned. Train for more steps (distillation.training), or keep more layers."
        )
    return text
