"""Pruned students: what stays is what was chosen, and any tool loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Prune
from ft_pipeline.process.tasks import ModelSpec, PruneTask
from ft_pipeline.worker.distillation.student import run
from ft_pipeline.worker.models.prune import (
    Importance,
    check_sizes,
    choose_layers,
    choose_neurons,
    prune,
)
from ft_pipeline_tests.worker.conftest import WorkerInputs


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def read(model: Any, importance: Importance) -> None:
    ids = torch.arange(40).reshape(2, 20) % 800
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    importance.expect(mask.bool())
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("first", [0, 1, 2]),
        ("last", [3, 4, 5]),
        ("every_nth", [0, 2, 5]),  # round(0), round(2.5), round(5)
        ("block_influence", [1, 3, 4]),
    ],
)
def test_layers_that_stay(method: str, expected: list[int]) -> None:
    influence = [0.1, 0.9, 0.2, 0.8, 0.7, 0.3]
    settings = Prune.model_validate({"layers": 3, "method": method})
    assert choose_layers(settings, 6, influence) == expected


def test_block_influence_is_one_minus_the_cosine_of_input_and_output(model: Any) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.model.layers[1].register_forward_hook(
        lambda module, given, output: seen.append((given[0], output))
    )
    with Importance(model) as importance:
        read(model, importance)
    hook.remove()
    before, after = (t[0] if isinstance(t, tuple) else t for t in seen[0])
    real = torch.cat([torch.ones(20), torch.ones(12), torch.zeros(8)]).bool()
    before, after = before.reshape(40, -1)[real], after.reshape(40, -1)[real]
    expected = (1 - torch.cosine_similarity(before, after, dim=-1)).mean()
    assert importance.block_influence[1] == pytest.approx(float(expected), rel=1e-5)


def test_a_layer_that_does_nothing_goes_first(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    with Importance(model) as importance:
        read(model, importance)
    kept = choose_layers(Prune(layers=2), 3, importance.block_influence)
    assert kept == [0, 2]
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.allclose(prune(model, kept, None)(ids).logits, model(ids).logits, atol=1e-5)


def test_neurons_that_are_silent_can_go_without_a_change(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    silent = [3, 50, 190]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[silent] = 0.0
    settings = Prune(intermediate_size=192 - len(silent))
    with Importance(model) as importance:
        read(model, importance)
    neurons = choose_neurons(settings, importance.neuron_norms)
    assert neurons is not None and not any(set(silent) & set(row) for row in neurons)
    smaller = prune(model, [0, 1, 2], neurons)
    assert smaller.config.intermediate_size == 189
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.allclose(smaller(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 4}, "prune.layers is 4, but the model has only 3"),
        ({"layers": 3}, "would remove nothing"),
        ({"intermediate_size": 999}, "prune.intermediate_size is 999, but the model has only 192"),
    ],
)
def test_sizes_are_checked_by_the_config_alone(
    tiny_model: Path, settings: dict[str, int], message: str
) -> None:
    config = LlamaConfig.from_pretrained(tiny_model)
    with pytest.raises(PipelineError, match=message):
        check_sizes(config, Prune.model_validate(settings))


@pytest.mark.parametrize("field", ["layers", "intermediate_size", "calibration_examples"])
def test_pruning_to_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Prune.model_validate({"layers": 1, field: 0})


@pytest.mark.slow
@pytest.mark.parametrize("source", ["base", "finetuned"])
def test_the_student_is_a_plain_checkpoint(
    inputs: WorkerInputs, tmp_path: Path, source: str
) -> None:
    (tmp_path / "meta").mkdir()
    task = PruneTask(
        model=ModelSpec(base_model=inputs.base_model, precision="fp32"),
        settings=Prune.model_validate(
            {"layers": 2, "intermediate_size": 100, "source": source, "calibration_examples": 9}
        ),
        train_tokens=inputs.train_tokens,
        output=tmp_path,
    )
    report = run(task)["metadata"]
    student = LlamaForCausalLM.from_pretrained(tmp_path)
    assert len(student.model.layers) == report["layers"] == 2
    assert student.model.layers[1].mlp.down_proj.weight.shape == (64, 100)
    assert student.num_parameters() == report["parameters"] < report["parameters_before"]
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 800
    assert json.loads((tmp_path / "base.json").read_text())["weights"] == "."
    assert report["loss_before"] != report["loss_after"]


def test_a_rounded_model_is_pruned_without_rounding_its_positions(tiny_model: Path) -> None:
    """The rotary frequencies stay in float32, as in a model that is loaded."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    smaller = prune(model, [0, 1, 2], None)
    assert {p.dtype for p in smaller.parameters()} == {torch.bfloat16}
    ids = torch.arange(300)[None]
    with torch.no_grad():
        assert torch.equal(smaller(ids).logits, model(ids).logits)
