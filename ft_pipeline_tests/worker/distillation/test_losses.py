"""The distillation loss: values and gradients beside the whole-vocabulary form, written plainly."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from ft_pipeline.config.recipe import Distillation
from ft_pipeline.worker import losses
from ft_pipeline.worker.distillation.losses import (
    StoredAnswers,
    forward_kl,
    jsd,
    online_loss,
    reverse_kl,
    stored_loss,
    target_entropy,
)
from ft_pipeline.worker.distillation.teacher_logits import keep_likeliest
from ft_pipeline.worker.losses import sum_losses

TOKENS, WIDTH, WORDS = 7, 5, 23
STUDENT = {"prune": {"layers": 1}}


def configure(**fields: Any) -> Distillation:
    return Distillation.model_validate({"student": STUDENT, "temperature": 2.0, **fields})


@pytest.fixture
def hidden() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(TOKENS, WIDTH, requires_grad=True)


@pytest.fixture
def head() -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(WIDTH, WORDS, bias=False)


@pytest.fixture
def teacher() -> torch.Tensor:
    """Logits of a teacher that is sure of some words."""
    torch.manual_seed(2)
    return 3 * torch.randn(TOKENS, WORDS)


@pytest.fixture
def targets() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(0, WORDS, (TOKENS,))


def store(logits: torch.Tensor, targets: torch.Tensor, k: int, temperature: float) -> StoredAnswers:
    ids, kept, tail_mass, _ = keep_likeliest(logits.clone(), targets, k, temperature)
    return StoredAnswers(ids, kept, tail_mass)


def naive(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, alpha: float, t: float
) -> torch.Tensor:
    """The guide's formula over the whole vocabulary, a token."""
    kd = -(softmax(teacher / t, -1) * log_softmax(student / t, -1)).sum(-1)
    return alpha * cross_entropy(student, targets, reduction="none") + (1 - alpha) * t * t * kd


def naive_bucket(
    student: torch.Tensor, teacher: torch.Tensor, k: int, t: float, tail: str
) -> torch.Tensor:
    """T² × the cross-entropy to the k likeliest tokens, with one bucket or renormalized."""
    p, q = softmax(teacher / t, -1), softmax(student / t, -1)
    ids = teacher.topk(k, -1).indices
    p_kept, q_kept = p.gather(1, ids), q.gather(1, ids)
    if tail == "renormalize":
        return -t * t * (p_kept / p_kept.sum(-1, keepdim=True) * q_kept.log()).sum(-1)
    rest = (1 - p_kept.sum(-1)) * (1 - q_kept.sum(-1)).log()
    return -t * t * ((p_kept * q_kept.log()).sum(-1) + rest)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_all_tokens_kept_is_the_loss_with_the_teacher_in_the_loop(
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    alpha: float,
    temperature: float,
) -> None:
    settings = configure(alpha=alpha, temperature=temperature, k=WORDS)
    answers = store(teacher, targets, WORDS, temperature)
    total, each = sum_losses(hidden, head, stored_loss(targets, answers, settings, WORDS))
    expected = naive(head(hidden), teacher, targets, alpha, temperature)
    assert torch.allclose(each, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(total, expected.sum(), hidden, head)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_online_loss_has_the_gradient_of_its_formula(
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    divergence: str,
) -> None:
    settings = configure(alpha=0.3, divergence=divergence, teacher={"mode": "online"})
    formula = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}[divergence]
    # Its states are its logits, its head changes nothing.
    loss = online_loss(targets, teacher, lambda states: states, settings, WORDS)
    total, each = sum_losses(hidden, head, loss)
    logits = head(hidden)
    expected = 0.3 * cross_entropy(logits, targets, reduction="none")
    expected = expected + 0.7 * 4 * formula(teacher / 2, logits / 2)
    assert torch.allclose(each, expected, atol=1e-5)
    assert_same_gradients(total, expected.sum(), hidden, head)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("k", [1, 4, 22])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_stored_gradient_is_that_of_the_naive_form_in_float64(
    monkeypatch: pytest.MonkeyPatch,
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    chunk: int,
    k: int,
    tail: str,
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk * WORDS)
    settings = configure(alpha=0.4, temperature=2.0, k=k, tail=tail)
    answers = store(teacher, targets, k, 2.0)
    total, _ = sum_losses(hidden, head, stored_loss(targets, answers, settings, WORDS))
    states = hidden.detach().double().requires_grad_()
    wide = torch.nn.Linear(WIDTH, WORDS, bias=False).double()
    wide.weight.data = head.weight.detach().double()
    logits = wide(states)
    expected = 0.4 * cross_entropy(logits, targets, reduction="none")
    expected = expected + 0.6 * naive_bucket(logits, teacher.double(), k, 2.0, tail)
    assert float(total) == pytest.approx(float(expected.sum()), rel=1e-5)
    found = torch.autograd.grad(total, [hidden, head.weight])
    wanted = torch.autograd.grad(expected.sum(), [states, wide.weight])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.double(), other, atol=1e-5)


def assert_same_gradients(
    one: torch.Tensor, other: torch.Tensor, hidden: torch.Tensor, head: torch.nn.Linear
) -> None:
    first = torch.autograd.grad(one, [hidden, head.weight])
    second = torch.autograd.grad(other, [hidden, head.weight])
    for found, expected in zip(first, second, strict=True):
        assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("k", [3, WORDS])
def test_equal_logits_give_no_divergence(
    teacher: torch.Tensor, targets: torch.Tensor, k: int
) -> None:
    answers = store(teacher, targets, k, 2.0)
    measure = stored_loss(targets, answers, configure(alpha=0.0, k=k), WORDS)
    each, gradient = measure(teacher.clone(), slice(0, TOKENS))
    entropy = target_entropy(answers, 2.0, "bucket")
    assert torch.allclose(each / 4, entropy, atol=1e-5)  # T² = 4; KL = cross-entropy − entropy
    assert gradient.abs().max() < 1e-5
    for divergence in (reverse_kl, jsd):
        assert divergence(teacher, teacher).abs().max() < 1e-6


def test_forward_kl_agrees_with_torch(teacher: torch.Tensor) -> None:
    student = torch.randn_like(teacher)
    p = softmax(teacher, -1)
    expected = kl_div(log_softmax(student, -1), p, reduction="none").sum(-1)
    entropy = -(p * p.log()).sum(-1)
    assert torch.allclose(forward_kl(teacher, student) - entropy, expected, atol=1e-5)


def test_nothing_trained_is_zero_with_a_gradient(head: torch.nn.Linear) -> None:
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    answers = StoredAnswers(none.reshape(0, 1), torch.zeros(0, 1), torch.zeros(0))
    total, each = sum_losses(hidden, head, stored_loss(none, answers, configure(), WORDS))
    total.backward()
    assert float(total.detach()) == 0.0 and len(each) == 0
    assert hidden.grad is not None and hidden.grad.shape == (0, WIDTH)


def test_a_padded_vocabulary_takes_no_part_in_the_teachers_term(
    hidden: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor
) -> None:
    padded = torch.nn.Linear(WIDTH, WORDS + 9, bias=False)
    cut = torch.nn.Linear(WIDTH, WORDS, bias=False)
    cut.weight.data = padded.weight.data[:WORDS]
    settings = configure(alpha=0.0, k=4)
    answers = store(teacher, targets, 4, 2.0)
    with_padding, _ = sum_losses(hidden, padded, stored_loss(targets, answers, settings, WORDS))
    without, _ = sum_losses(hidden, cut, stored_loss(targets, answers, settings, WORDS))
    assert float(with_padding) == pytest.approx(float(without), rel=1e-6)
    (gradient,) = torch.autograd.grad(with_padding, padded.weight)
    assert gradient[WORDS:].abs().max() == 0


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_sure_student_has_a_finite_loss(
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    teacher: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
) -> None:
    answers = store(teacher, targets, 4, 2.0)
    loss = stored_loss(targets, answers, configure(alpha=0.5, k=4), WORDS)
    total, _ = sum_losses(hidden * scale, head, loss)
    (gradient,) = torch.autograd.grad(total, head.weight)
    assert torch.isfinite(total) and torch.isfinite(gradient).all()


def test_rounded_answers_still_sum_to_one(teacher: torch.Tensor, targets: torch.Tensor) -> None:
    answers = store(teacher, targets, 6, 2.0)
    rounded = StoredAnswers(answers.ids, answers.log_probs.half().float(), answers.tail_mass)
    for tail in ("bucket", "renormalize"):
        kept, bucket = rounded.distribution(2.0, tail)
        assert torch.allclose(kept.sum(-1) + bucket[:, 0], torch.ones(TOKENS), atol=1e-6)
