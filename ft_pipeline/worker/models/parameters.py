"""The trained parameters of a model by name, and switching its modes."""

from typing import Any

import torch


def copy_trained(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the trained parameters by name, on the CPU."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore_trained(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Set trained parameters to these values, in their current dtype."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = weights[name].to(parameter.device, copy=True)


def switch_to_evaluation(model: Any) -> None:
    """Turn dropout off; NF4 layers stay in training mode.

    bitsandbytes 0.50 packs their weights for a CPU kernel without backward pass as soon as a layer
    computes in evaluation mode without gradients (docs/decisions.md).
    """
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bits"):
            module.training = True
