"""The distillation loss: cross-entropy on the data, mixed with a teacher's answers.

    loss = alpha · CE(target) + (1 − alpha) · T² · CE(softmax(teacher / T), softmax(student / T))

for each trained token (Hinton et al., arXiv 1503.02531; T² keeps the gradients' size as T changes).
The second part is forward KL plus the teacher's entropy, which has no gradient.

The teacher is stored (its k likeliest tokens and the mass of all others) or in the loop (its whole
logits). Of a stored teacher the tokens beyond the k are one *bucket* with its true mass m: the
loss is −Σ_{i∈k} p_i log q_i − m log(1 − Σ_{i∈k} q_i). At a logit beyond the k its gradient is
q_j (1 − m / q_tail) / T: nothing moves between the tokens beyond, and nothing pushes them down
once the student's mass there is m. `renormalize` spreads m over the k tokens: p_i / Σ p, a sharper
target, and every token beyond the k is pushed down by q_j / T. Measured: docs/distillation.md.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, log_softmax

from ft_pipeline.config.recipe import Distillation
from ft_pipeline.worker.losses import Head, LogitLoss, cross_entropy_with


@dataclass(frozen=True)
class StoredAnswers:
    """A teacher's stored answers at the trained positions of a batch.

    `ids`: int64[trained, k], `log_probs`: float32[trained, k] at T = 1; `tail_mass`:
    float32[trained], the mass of all other tokens at the temperature of the loss.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    tail_mass: torch.Tensor

    def distribution(self, temperature: float, tail: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the target: float32[trained, k] and the bucket's mass, float32[trained, 1].

        softmax(z / T) over the k tokens alone is their share of 1 − m, whatever the others are; so
        the target sums to one regardless of how the log-probabilities were rounded.
        """
        kept = torch.softmax(self.log_probs / temperature, dim=-1)
        bucket = self.tail_mass[:, None] if tail == "bucket" else torch.zeros_like(kept[:, :1])
        return kept * (1 - bucket), bucket


def stored_loss(
    targets: torch.Tensor, answers: StoredAnswers, settings: Distillation, vocab_size: int
) -> LogitLoss:
    """Return the distillation loss against stored answers, as a loss of logits.

    `targets`: int[trained]; only the first `vocab_size` logits take part in the teacher's term, so
    that padded vocabularies of teacher and student need not be equal.
    """
    temperature, alpha = settings.temperature, settings.alpha
    plain = cross_entropy_with(targets)
    target, bucket = answers.distribution(temperature, settings.tail)

    def measure(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        ids, p, m = answers.ids[part], target[part], bucket[part]
        logits -= logits.amax(-1, keepdim=True)
        kept = logits.gather(1, ids) / temperature
        soft = torch.div(logits[:, :vocab_size], temperature).exp_()
        soft_kept = kept.exp()
        soft.scatter_(1, ids, 0.0)
        # Summed without the k vocab_size, not subtracted: nothing cancels where the mass is small.
        tail_mass = soft.sum(-1, keepdim=True)
        total = tail_mass + soft_kept.sum(-1, keepdim=True)
        safe = tail_mass.clamp(min=torch.finfo(torch.float32).tiny)
        losses = -(p * (kept - total.log())).sum(-1)
        losses -= torch.where(m > 0, m * (safe.log() - total.log()), 0.0)[:, 0]
        losses *= (1 - alpha) * temperature**2
        weight = (1 - alpha) * temperature
        unweighted = 1 / total
        if settings.tail == "bucket":
            unweighted = unweighted - torch.where(tail_mass > 0, m / safe, 0.0)
        at_kept = weight * (soft_kept / total - p)
        if alpha == 0:
            gradient = torch.zeros_like(logits) if vocab_size < logits.shape[-1] else soft
            gradient[:, :vocab_size] = soft.mul_(weight * unweighted)
        else:
            of_targets, gradient = plain(logits, part)
            losses += alpha * of_targets
            gradient.mul_(alpha)[:, :vocab_size].addcmul_(soft, weight * unweighted)
        return losses, gradient.scatter_add_(1, ids, at_kept)

    return measure


def target_entropy(answers: StoredAnswers, temperature: float, tail: str) -> torch.Tensor:
    """Return the target's entropy in nats, float32[trained]: the lower bound of the loss."""
    p, m = answers.distribution(temperature, tail)
    every = torch.cat([p, m], dim=-1)
    return torch.special.entr(every).sum(-1)


def online_loss(
    targets: torch.Tensor,
    teacher_states: torch.Tensor,
    teacher_head: Head,
    settings: Distillation,
    vocab_size: int,
) -> LogitLoss:
    """Return the distillation loss against a teacher in the loop, as a loss of logits.

    `teacher_states`: float[trained, width of the teacher], whose logits are made chunk by chunk.
    """
    temperature, alpha = settings.temperature, settings.alpha
    divergence = DIVERGENCES[settings.divergence]

    def measure(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            teacher = teacher_head(teacher_states[part])[:, :vocab_size].float() / temperature
        with torch.enable_grad():
            student = logits.requires_grad_()
            losses = alpha * cross_entropy(student, targets[part], reduction="none")
            parted = divergence(teacher, student[:, :vocab_size] / temperature)
            losses = losses + (1 - alpha) * temperature**2 * parted
            (gradient,) = torch.autograd.grad(losses.sum(), student)
        return losses.detach(), gradient

    return measure


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """−Σ p log q, forward KL up to the teacher's entropy: float[tokens] of logits / T."""
    return -(torch.softmax(teacher, -1) * log_softmax(student, -1)).sum(-1)


def reverse_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Σ q log(q / p) (MiniLLM, arXiv 2306.08543): float[tokens] of logits / T."""
    log_p, log_q = log_softmax(teacher, -1), log_softmax(student, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def jsd(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2 (GKD, arXiv 2306.13649, β = ½)."""
    log_p, log_q = log_softmax(teacher, -1), log_softmax(student, -1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    of_teacher = (log_p.exp() * (log_p - log_m)).sum(-1)
    return 0.5 * of_teacher + 0.5 * (log_q.exp() * (log_q - log_m)).sum(-1)


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
