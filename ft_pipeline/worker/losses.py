"""The loss on a completion's tokens, from hidden states: no logits where nothing is trained.

The language-model head is applied to trained positions only, in chunks whose logits are made again
in the backward pass. So [tokens, vocabulary] is never there in float32 as a whole: at 128,256 words
that is 0.5 GB for a thousand tokens, and as much again for the gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from ft_pipeline.worker.batches import IGNORED

# Logits that are held at once: 256 MB in float32.
CHUNK_ELEMENTS = 1 << 26

Head = Callable[[torch.Tensor], torch.Tensor]


def select_trained(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states that predict a trained token, and these tokens.

    `hidden`: float[batch, length, width], `labels`: int[batch, length] with −100 where nothing is
    trained; returns float[trained, width] and int[trained].
    """
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return hidden[:, :-1][trained], targets[trained]


def completion_loss(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the cross-entropy of each trained token in nats, float32[trained].

    `hidden`: float[trained, width], `targets`: int[trained]. For no trained token the result is
    empty, but still has a gradient (of zero).
    """
    if not len(targets):
        return hidden.float().sum(dim=-1) * 0.0
    chunk = max(1, CHUNK_ELEMENTS // _vocabulary(head, hidden))
    if len(targets) <= chunk:
        return _token_losses(hidden, targets, head)
    parts = [
        checkpoint(
            _token_losses,
            hidden[start : start + chunk],
            targets[start : start + chunk],
            head,
            use_reentrant=False,
        )
        for start in range(0, len(targets), chunk)
    ]
    return torch.cat(parts)


def _token_losses(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="none")


def _vocabulary(head: Any, hidden: torch.Tensor) -> int:
    return int(getattr(head, "out_features", 0) or head(hidden[:1]).shape[-1])


def find_body_and_head(model: Any) -> tuple[Any, Head] | None:
    """Return what makes hidden states and what makes logits of them.

    None where the model does something to its logits that this would leave out (soft-capping and
    scaling in Gemma, Cohere and Granite): its own loss is taken then.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config.get_text_config()
    special = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in special):
        return None
    head = causal.get_output_embeddings()
    return None if head is None else (causal.base_model, head)
