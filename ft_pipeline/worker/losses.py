"""Losses on completion tokens, from hidden states, without logits for untrained positions.

The language-model head is applied only to trained positions, one chunk at a time, and each chunk's
gradient is computed with its loss. So the full [tokens, vocabulary] never exists in float32,
forward or backward (at a vocabulary of 128,256 that is 0.5 GB per thousand tokens, and as much
again for the gradient), and no logits are computed twice. The idea is Liger's fused linear
cross-entropy (arXiv 2410.10989); here it works for any loss that knows its gradient, on any device.
"""

from collections.abc import Callable
from typing import Any

import torch

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.store.artifact_files import IGNORED

# Logits that are held at once: 64 MB in float32. Smaller chunks are no faster on a CPU.
CHUNK_ELEMENTS = 1 << 24

Head = Callable[[torch.Tensor], torch.Tensor]
# Of a chunk's logits, float32[tokens, vocabulary], which it may overwrite, and the chunk's place
# among all tokens: each token's loss, float32[tokens], and the gradient of their sum at the logits.
LogitLoss = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


def select_trained(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states that predict a trained token, and those tokens.

    `hidden`: float[batch, length, width], `labels`: int[batch, length] with −100 where nothing is
    trained; returns float[trained, width] and int[trained].
    """
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return hidden[:, :-1][trained], targets[trained]


def sum_losses(
    hidden: torch.Tensor, head: Head, logit_loss: LogitLoss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of all tokens' losses, which has a gradient, and each loss, float32[trained].

    `hidden`: float[trained, width]. Without tokens, the sum is zero, with a gradient of zero.
    """
    if not len(hidden):
        return hidden.float().sum() * 0.0, hidden.new_zeros(0, dtype=torch.float32)
    if not torch.is_grad_enabled():
        parts = cut_positions(hidden, head)
        losses = torch.cat([logit_loss(head(hidden[part]).float(), part)[0] for part in parts])
        return losses.sum(), losses
    owner = head if isinstance(head, torch.nn.Module) else torch.nn.Module()
    parameters = [p for p in owner.parameters() if p.requires_grad]
    total, losses = _SumLosses.apply(hidden, head, logit_loss, *parameters)
    return total, losses


def completion_loss(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy in nats: its sum, and that of each trained token.

    `hidden`: float[trained, width], `targets`: int[trained].
    """
    return sum_losses(hidden, head, cross_entropy_with(targets))


def cross_entropy_with(targets: torch.Tensor) -> LogitLoss:
    """Return −log softmax(logits)[target] as a loss of logits. `targets`: int[trained]."""

    def measure(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = targets[part][:, None]
        logits -= logits.amax(-1, keepdim=True)
        chosen = logits.gather(1, wanted)
        total = logits.exp_().sum(-1, keepdim=True)
        gradient = logits.div_(total).scatter_add_(1, wanted, -torch.ones_like(chosen))
        return (total.log() - chosen)[:, 0], gradient

    return measure


class _SumLosses(torch.autograd.Function):
    """Makes the gradients in the forward pass, for a sum; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Head, logit_loss: LogitLoss, *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        of_hidden = torch.empty_like(hidden)
        of_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for part in cut_positions(hidden, head):
            states = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(states)
            found, gradient = logit_loss(logits.detach().float(), part)
            losses.append(found)
            if _is_plain(head, logits):
                of_hidden[part] = gradient @ head.weight  # type: ignore[attr-defined]
                for whole in of_parameters:  # its weight, or nothing where that is frozen
                    whole.addmm_(gradient.T, states.detach())
                continue
            of_states, *others = torch.autograd.grad(
                logits, [states, *parameters], gradient.to(logits.dtype)
            )
            of_hidden[part] = of_states
            for whole, of_part in zip(of_parameters, others, strict=True):
                whole += of_part
        ctx.gradients = (of_hidden, *of_parameters)
        each = torch.cat(losses)
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _unused: torch.Tensor) -> Any:
        of_hidden, *of_parameters = ctx.gradients
        del ctx.gradients  # scaled in place, so a second backward must not see them
        scaled = [gradient.mul_(scale.to(gradient.dtype)) for gradient in of_parameters]
        return of_hidden.mul_(scale.to(of_hidden.dtype)), None, None, *scaled


def _is_plain(head: Any, logits: torch.Tensor) -> bool:
    """Whether a head is one product in float32: its gradients are two more, summed in place."""
    plain = type(head) is torch.nn.Linear and head.bias is None
    return plain and head.weight.dtype == logits.dtype == torch.float32


def cut_positions(hidden: torch.Tensor, head: Any) -> list[slice]:
    """Return chunks of positions whose logits do not exceed CHUNK_ELEMENTS."""
    vocab_size = int(getattr(head, "out_features", 0) or head(hidden[:1]).shape[-1])
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def find_body_and_head(model: Any) -> tuple[Any, Head] | None:
    """Return the function that computes hidden states and the one that turns them into logits.

    None if the model changes its logits afterwards (soft-capping and scaling in Gemma, Cohere and
    Granite): its own loss is then used.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config.get_text_config()
    special = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in special):
        return None
    head = causal.get_output_embeddings()
    return None if head is None else (causal.base_model, head)


def require_body_and_head(model: Any, role: str) -> tuple[Any, Head]:
    """Return the same for a distillation's `teacher` or `student`, or raise PipelineError."""
    parts = find_body_and_head(model)
    if parts is None:
        raise PipelineError(
            f"distillation.{role}: {type(model).__name__} changes its logits after its head "
            f"(soft-capping or scaling), which is not supported. Choose another {role}."
        )
    return parts
