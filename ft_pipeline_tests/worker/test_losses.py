"""The loss from hidden states: that of the whole logits, in any number of chunks."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from ft_pipeline.worker import losses
from ft_pipeline.worker.losses import completion_loss, find_body_and_head, select_trained


def make_case(trained: int = 37) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    return torch.randn(trained, 16, requires_grad=True), torch.randint(0, 50, (trained,)), head


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
def test_chunks_change_neither_loss_nor_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    hidden, targets, head = make_case()
    expected = cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(expected, [hidden, head.weight])
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk * 50)
    found, each = completion_loss(hidden, targets, head)
    assert torch.allclose(each, cross_entropy(head(hidden), targets, reduction="none"), atol=1e-6)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(torch.autograd.grad(found, [hidden, head.weight]), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_with_a_bias_or_in_bf16_has_its_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, dtype=dtype)
    hidden = torch.randn(9, 16, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 50, (9,))
    trained = [hidden, head.weight, head.bias]
    wanted = torch.autograd.grad(
        cross_entropy(head(hidden).float(), targets, reduction="sum") * 0.25, trained
    )
    found, _ = completion_loss(hidden, targets, head)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for one, other in zip(torch.autograd.grad(found * 0.25, trained), wanted, strict=True):
        assert torch.allclose(one, other, atol=tolerance)


def test_a_second_backward_is_refused() -> None:
    hidden, targets, head = make_case()
    total, _ = completion_loss(hidden, targets, head)
    total.backward(retain_graph=True)
    with pytest.raises(AttributeError, match="gradients"):
        total.backward()


def test_no_trained_token_has_no_loss_but_a_gradient() -> None:
    hidden, targets, head = make_case(0)
    loss, _ = completion_loss(hidden, targets, head)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None


def test_a_token_is_predicted_by_the_state_before_it() -> None:
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    labels = torch.tensor([[-100, 5, -100, 7]])
    states, targets = select_trained(hidden, labels)
    assert targets.tolist() == [5, 7]
    assert states.tolist() == [[0.0, 1.0], [4.0, 5.0]]


def test_a_model_that_caps_its_logits_keeps_its_own_loss() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    assert find_body_and_head(Gemma2ForCausalLM(config)) is None
