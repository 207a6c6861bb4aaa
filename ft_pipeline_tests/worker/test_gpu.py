"""What only a GPU can prove: `pytest -m gpu`.

Autocast, fp16's loss scaling, 8-bit optimizers, unsloth's kernels, CUDA's own word for too little
memory. In all other tests the GPU is hidden.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_weights
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ft_pipeline.config.recipe import BaseModelChoice
from ft_pipeline.process.gpus import list_places
from ft_pipeline.process.tasks import BaseModelTask
from ft_pipeline.worker.models import base_model
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.data.templates import FAMILIES, build_model
from ft_pipeline_tests.worker.tiny_training import (
    EXACT,
    GENTLE,
    ROUNDED,
    Trained,
    plain_losses,
    train,
    train_again,
    train_here,
    write_task,
)
from ft_pipeline_tests.worker.training.test_memory import LADDER, write_long_examples
from ft_pipeline_tests.worker.training.test_resume import DROPOUT, STEPS, kill_at

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed"
)

Record = Callable[[str, object], None]
# LLM.int8 rounds activations too, and 8-bit moments round each update.
COARSE = 0.05
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FULL = {"method": "full", "learning_rate": 1e-3}
COMBINATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "lora, fp32": ({"method": "lora", "precision": "fp32"}, EXACT),
    "lora, bf16": ({"method": "lora", "precision": "bf16"}, ROUNDED),
    "lora, fp16": ({"method": "lora", "precision": "fp16"}, ROUNDED),
    "qlora, fp32": ({"method": "qlora", "precision": "fp32"}, EXACT),
    "qlora, bf16": ({"method": "qlora", "precision": "bf16"}, ROUNDED),
    "qlora, fp16": ({"method": "qlora", "precision": "fp16"}, ROUNDED),
    "lora on int8, bf16": ({"method": "lora", "quantization": "int8", "precision": "bf16"}, COARSE),
    "lora on int8, fp16": ({"method": "lora", "quantization": "int8", "precision": "fp16"}, COARSE),
    "dora, bf16": ({"method": "dora", "precision": "bf16"}, ROUNDED),
    "dora on NF4, bf16": ({"method": "dora", "quantization": "nf4", "precision": "bf16"}, ROUNDED),
    "rslora, bf16": ({"method": "rslora", "precision": "bf16"}, ROUNDED),
    "bottleneck, bf16": ({"method": "bottleneck", "precision": "bf16"}, ROUNDED),
    "bottleneck on NF4, fp16": (
        {"method": "bottleneck", "quantization": "nf4", "precision": "fp16"},
        ROUNDED,
    ),
    "full, fp32": ({**FULL, "precision": "fp32"}, EXACT),
    "full, bf16": ({**FULL, "precision": "bf16"}, ROUNDED),
    "full, fp16": ({**FULL, "precision": "fp16"}, ROUNDED),
    "full, 8-bit optimizer": ({**FULL, "precision": "fp32", "optimizer": "adamw_8bit"}, COARSE),
    "grouped, bf16": ({"batching": "grouped", "precision": "bf16"}, ROUNDED),
    "packed, fp32": ({"batching": "packed", "precision": "fp32"}, EXACT),
    "packed, bf16": ({"batching": "packed", "precision": "bf16"}, ROUNDED),
    "accumulated, bf16": (
        {"batch_size": 2, "gradient_accumulation": 2, "precision": "bf16"},
        ROUNDED,
    ),
    "recomputed, bf16": ({"gradient_checkpointing": True, "precision": "bf16"}, ROUNDED),
}


def worst_difference(found: list[float], expected: list[float]) -> float:
    """Return the largest relative one; `--junitxml` shows it."""
    return max(abs(a - b) / b for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_losses_follow_a_plain_loop(
    inputs: WorkerInputs, tmp_path: Path, name: str, record_property: Record
) -> None:
    """24 steps of AdamW by hand in fp32 on the same GPU, without Trainer, trl or autocast."""
    settings, band = COMBINATIONS[name]
    trained = train_here(write_task(inputs, tmp_path, **GENTLE | settings))
    found = [record["loss"] for record in trained.metrics]
    expected = plain_losses(inputs, **settings | {"optimizer": "adamw_torch"})
    record_property("worst", worst_difference(found, expected))
    assert found == pytest.approx(expected, rel=band)
    assert found[-1] < found[0] - 0.01
    assert trained.report["batching"] == settings.get("batching", "plain")
    assert trained.report["dtype"] == DTYPES[settings["precision"]]
    assert trained.report["adapter_loads"]


@needs_unsloth
@pytest.mark.unsloth
@pytest.mark.parametrize(
    ("method", "precision"),
    [("qlora", "bf16"), ("lora", "fp16"), ("lora", "bf16"), ("dora", "bf16"), ("qlora", "fp16")],
)
def test_unsloth_is_chosen_and_learns_what_the_plain_loop_learns(
    inputs: WorkerInputs, tmp_path: Path, method: str, precision: str, record_property: Record
) -> None:
    """It draws its own initial adapter, so losses can only be near; the first has to agree."""
    settings = {"backend": "auto", "method": method, "precision": precision, **GENTLE}
    trained = train(inputs, tmp_path, **settings)
    assert trained.report["backend"] == "unsloth"
    found = [record["loss"] for record in trained.metrics]
    expected = plain_losses(inputs, method=method)
    record_property("worst", worst_difference(found, expected))
    assert found[0] == pytest.approx(expected[0], rel=ROUNDED)
    assert found == pytest.approx(expected, rel=0.05)
    assert trained.report["tokens"] > 0
    assert trained.report["adapter_loads"]
    assert len(trained.report["worst_examples"]) == 10


@needs_unsloth
@pytest.mark.unsloth
@pytest.mark.parametrize("family", ["llama_3_base", "deepseek_r1"])
def test_unsloth_takes_a_tokenizer_without_padding_of_its_own(
    inputs: WorkerInputs, tmp_path: Path, family: str
) -> None:
    """By itself it would add a token to the model, or refuse it."""
    base = tmp_path / "base"
    base.mkdir()
    model = build_model(FAMILIES[family], tmp_path / "model")
    base_model.run(BaseModelTask(choice=BaseModelChoice(path=str(model)), output=base))
    given = WorkerInputs(base, inputs.examples, inputs.train_tokens, inputs.val_tokens)
    trained = train(given, tmp_path / "run", backend="unsloth", method="lora", max_steps=2)
    assert trained.report["backend"] == "unsloth"
    saved = load_file(trained.output / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)
    pads = [AutoTokenizer.from_pretrained(each).pad_token for each in (trained.output, base)]
    assert pads[0] == (pads[1] or FAMILIES[family].eos)


RESUMED: dict[str, dict[str, Any]] = {
    "grouped, dropout, bf16": {"batching": "grouped", "precision": "bf16", **DROPOUT},
    "NF4, fp16's scale": {"method": "qlora", "precision": "fp16", **DROPOUT},
    "full, 8-bit moments": {**FULL, "optimizer": "adamw_8bit", "precision": "bf16"},
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_training_ends_as_an_undisturbed_one(
    inputs: WorkerInputs, tmp_path: Path, case: str, record_property: Record
) -> None:
    settings = STEPS | RESUMED[case]
    whole, control = (
        train_again(write_task(inputs, tmp_path / n, **settings)) for n in ("whole", "control")
    )
    config = write_task(inputs, tmp_path / "killed", **settings)
    kill_at(config, 18)
    again = train_again(config)
    assert again.report["resumed_from_step"] in (12, 16, 20)
    record_property("two undisturbed runs", difference_of_weights(whole, control))
    record_property("worst", difference_of_weights(whole, again))
    assert difference_of_weights(whole, again) < 1e-3
    losses = [[record["loss"] for record in each.metrics] for each in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def difference_of_weights(one: Trained, other: Trained) -> float:
    """Return the largest difference of a trained weight."""
    found = [load_weights(each.weights) for each in (one, other)]
    return max(float((found[0][n].float() - found[1][n].float()).abs().max()) for n in found[0])


def test_the_optimizer_of_a_recipe_keeps_its_moments_in_8_bits(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    settings = FULL | {"optimizer": "adamw_8bit", "max_steps": 4, "save_steps": 2}
    train_here(write_task(inputs, tmp_path, **settings))
    (file,) = (tmp_path / "checkpoints").glob("step-*2/optimizer.pt")
    states = torch.load(file, weights_only=True)["state"].values()
    kept = [state["__bnb_optimizer_quant_state__"] for state in states]
    assert torch.uint8 in {moments["state1"].dtype for moments in kept}


LIMITED = """
import sys, torch
megabytes = float(sys.argv.pop(1))
torch.cuda.set_per_process_memory_fraction(1e6 * megabytes / torch.cuda.mem_get_info()[1])
from ft_pipeline.worker.__main__ import main
sys.exit(main())
"""


def train_limited(config: Path, megabytes: float) -> tuple[int, str]:
    """Train in a child whose share of the GPU's memory is limited by torch's allocator."""
    command = [sys.executable, "-c", LIMITED, str(megabytes), "train", "--config", str(config)]
    environment = os.environ | {"FT_LOCKS": str(config.parent)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    return done.returncode, done.stderr


def test_a_training_that_does_not_fit_falls_back_to_smaller_passes(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    long = write_long_examples(inputs, tmp_path, 900)
    whole = train_here(write_task(long, tmp_path / "whole", **LADDER))
    config = write_task(long, tmp_path / "small", **LADDER)
    code, log = train_limited(config, 0.7 * whole.report["peak_memory_mb"])
    assert code == 0, log[-3000:]
    report = Trained(tmp_path / "small", 0, log).report
    outcomes = [fallback["outcome"] for fallback in report["memory_fallbacks"]]
    assert (outcomes[0], outcomes[-1]) == ("out of memory", "fits")
    assert report["batch_size"] * report["gradient_accumulation"] == 32 > report["batch_size"]
    assert report["final_loss"] == pytest.approx(whole.report["final_loss"], rel=1e-4)


def test_a_training_that_fits_by_no_fallback_shows_what_was_tried(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    long = write_long_examples(inputs, tmp_path, 2000)
    code, log = train_limited(write_task(long, tmp_path, **LADDER | {"batch_size": 2}), 40)
    assert code == 1, log[-3000:]
    assert "this training does not fit into memory. Tried:" in log
    assert "    1             2         yes  out of memory" in log


def test_two_trainings_of_the_same_give_the_same_losses(
    inputs: WorkerInputs, tmp_path: Path, record_property: Record
) -> None:
    settings = {"method": "qlora", "precision": "bf16"}
    one, other = (train_here(write_task(inputs, tmp_path / n, **settings)) for n in "ab")
    record_property("bit_equal", one.weights == other.weights)
    losses = [[record["loss"] for record in each.metrics] for each in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_lock_of_a_card_has_a_name_that_cuda_takes() -> None:
    (first, *_) = list_places()
    code = "import torch; print(torch.cuda.get_device_properties(0).uuid)"
    shown = os.environ | {"CUDA_VISIBLE_DEVICES": first.name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=shown, capture_output=True, text=True, check=True
    )
    assert first.name == f"GPU-{done.stdout.strip()}"


def test_precision_auto_takes_what_the_card_is_fast_in() -> None:
    from ft_pipeline.worker.hardware import choose_dtype

    ampere = torch.cuda.get_device_capability()[0] >= 8
    assert choose_dtype("auto") == (torch.bfloat16 if ampere else torch.float16)


def test_what_is_left_to_the_machine_trains(inputs: WorkerInputs, tmp_path: Path) -> None:
    chosen = {"backend": "auto", "precision": "auto", "batching": "auto", "method": "qlora"}
    trained = train(inputs, tmp_path, **chosen)
    assert trained.report["loss_is_finite"]
    assert trained.report["final_loss"] < trained.report["first_loss"]
