"""Training for real, on the CPU, by both back ends: right losses, whole files, clear refusals.

A GPU's code paths (autocast, adamw_8bit, unsloth's kernels): test_gpu.py.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from ft_pipeline.base.jsonl import write_jsonl
from ft_pipeline.worker.data.tokens import read_tokens
from ft_pipeline.worker.inference.evaluate import score
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.tiny_training import (
    EXACT,
    GENTLE,
    ROUNDED,
    Trained,
    make_granite,
    plain_losses,
    train,
    train_here,
    write_task,
)

# Method, quantization and precision that a CPU can train, and how far the losses of 24 steps may
# leave those of a plain fp32 loop on the same base.
TWO_LAYERS = {"r": 4, "alpha": 8, "dropout": 0.0, "init": "gaussian", "layers": [1, 2]}
COMBINATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"method": "lora"}, EXACT),
    "lora, bf16": ({"method": "lora", "precision": "bf16"}, ROUNDED),
    "qlora": ({"method": "qlora"}, EXACT),
    "qlora, bf16": ({"method": "qlora", "precision": "bf16"}, ROUNDED),
    "qlora, quantized once": ({"method": "qlora", "double_quantization": False}, EXACT),
    "dora": ({"method": "dora"}, EXACT),
    "rslora": ({"method": "rslora"}, EXACT),
    "rslora on NF4": ({"method": "rslora", "quantization": "nf4"}, EXACT),
    "lora on int8": ({"method": "lora", "quantization": "int8"}, ROUNDED),
    "bottleneck": ({"method": "bottleneck"}, EXACT),
    "bottleneck on NF4": ({"method": "bottleneck", "quantization": "nf4"}, EXACT),
    "full": ({"method": "full", "learning_rate": 1e-3}, EXACT),
    "full, bf16": ({"method": "full", "learning_rate": 1e-3, "precision": "bf16"}, ROUNDED),
    "grouped": ({"batching": "grouped"}, EXACT),
    "packed": ({"batching": "packed"}, EXACT),
    "accumulated": ({"batch_size": 2, "gradient_accumulation": 2}, EXACT),
    "recomputed": ({"gradient_checkpointing": True}, EXACT),
    "gaussian, two layers": ({"lora": TWO_LAYERS}, EXACT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_losses_follow_a_plain_loop(inputs: WorkerInputs, tmp_path: Path, name: str) -> None:
    """24 steps of AdamW by hand, without Trainer, trl or our batches' code."""
    settings, band = COMBINATIONS[name]
    trained = train_here(write_task(inputs, tmp_path, **GENTLE | settings))
    found = [record["loss"] for record in trained.metrics]
    expected = plain_losses(inputs, **settings)
    assert found == pytest.approx(expected, rel=band)
    assert found[-1] < found[0] - 0.01  # it learns
    assert trained.report["batching"] == settings.get("batching", "plain")
    assert trained.report["adapter_loads"]


@pytest.mark.slow
@pytest.mark.unsloth
def test_unsloth_learns_what_the_plain_loop_learns(inputs: WorkerInputs, tmp_path: Path) -> None:
    """It draws its own initial adapter, so losses can only be near; the first has to agree."""
    settings = {"backend": "unsloth", "method": "qlora", **GENTLE}
    trained = train(inputs, tmp_path, **settings)
    found = [record["loss"] for record in trained.metrics]
    expected = plain_losses(inputs, method="qlora")
    assert found[0] == pytest.approx(expected[0], abs=1e-3)
    assert found == pytest.approx(expected, rel=0.05)


@pytest.fixture(scope="module")
def trained(inputs: WorkerInputs, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training in a worker of its own."""
    folder = tmp_path_factory.mktemp("qlora")
    return train(inputs, folder, method="qlora", optimizer="adamw_8bit")


@pytest.mark.slow
def test_adapter_is_trained_and_base_is_not(
    inputs: WorkerInputs, tiny_model: Path, trained: Trained
) -> None:
    report = trained.report
    assert report["loss_is_finite"]
    assert report["final_loss"] < report["first_loss"]
    assert report["adapter_change"] > 0
    assert report["tokens"] > 0
    weights = load_file(trained.output / "adapter_model.safetensors")
    changed = [n for n, w in weights.items() if "lora_B" in n and w.abs().sum() > 0]
    assert len(changed) == 3 * 7  # layers × projections
    base = (inputs.base_model / "model.safetensors").read_bytes()
    assert base == (tiny_model / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_trainings_of_the_same_give_equal_adapters(
    inputs: WorkerInputs, tmp_path: Path, trained: Trained
) -> None:
    again = train_here(write_task(inputs, tmp_path, method="qlora"))
    assert again.weights == trained.weights


@pytest.mark.slow
def test_nothing_pickled_is_left(trained: Trained) -> None:
    names = [p.name for p in trained.output.rglob("*")]
    assert "adapter_model.safetensors" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".pth"))]


@pytest.mark.slow
def test_optimizer_that_needs_a_gpu_is_replaced_and_said_so(trained: Trained) -> None:
    assert "adamw_8bit needs a GPU; using adamw_torch instead" in trained.log


@pytest.mark.slow
def test_the_worst_examples_are_those_with_the_highest_loss(trained: Trained) -> None:
    worst = trained.report["worst_examples"]
    assert len(worst) == 10
    losses = [each["loss"] for each in worst]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > trained.report["final_loss"]


@pytest.mark.slow
def test_saved_adapter_loads_with_plain_peft_elsewhere(trained: Trained, tiny_model: Path) -> None:
    config = json.loads((trained.output / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)  # the canonical id of this base
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(trained.output)
    assert model(input_ids=torch.tensor([[1, 5, 6]])).logits.shape == (1, 3, 800)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"target_modules": ["nope_proj"]}}, "training.lora.target_modules: .*nope_proj"),
        ({"lora": {"target_modules": ["q_proj", "qkv_proj"]}}, "has no linear layer qkv_proj. Its"),
        (
            {"lora": {"layers": [1, 9]}},
            r"training.lora.layers is \[1, 9\], but .* has only 3 layers",
        ),
        ({"precision": "fp16"}, "training.precision: fp16 needs a GPU"),
        (
            {"method": "dora", "quantization": "int8"},
            "training.quantization: dora on int8 needs a GPU",
        ),
        ({"warmup_steps": 60, "max_steps": None, "epochs": 1}, "training.warmup_steps is 60"),
        ({"backend": "unsloth", "method": "full"}, "unsloth only trains lora, qlora, dora, rslora"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    inputs: WorkerInputs, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    from ft_pipeline.base.errors import PipelineError

    with pytest.raises(PipelineError, match=message):
        train_here(write_task(inputs, tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e30}, "the loss is nan|the loss is inf"),
        ({"spike_factor": 1.0001, "max_steps": 40}, "more than 1.0001 times"),
    ],
)
def test_a_loss_that_leaves_stops_the_training_and_names_the_examples(
    inputs: WorkerInputs, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    from ft_pipeline.base.errors import PipelineError
    from ft_pipeline.worker.data.tokens import read_tokens

    task = write_task(inputs, tmp_path, **{"save_steps": 1} | settings)
    with pytest.raises(PipelineError, match=message) as caught:
        train_here(task)
    text = str(caught.value)
    named = [r["example_id"] for r in read_tokens(inputs.train_tokens) if r["example_id"] in text]
    assert len(named) == 4
    assert "is kept" in text
    assert list((tmp_path / "checkpoints").glob("step-*/complete.json"))


def test_unsloth_where_it_is_not_installed_is_an_error(tmp_path: Path) -> None:
    """In an interpreter that cannot see unsloth: a finder that hides it, as if not installed."""
    code = (
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'unsloth' else real(name, *a)\n"
        "from ft_pipeline.worker.models.methods import choose_backend\n"
        "from ft_pipeline.base.errors import PipelineError\n"
        "from ft_pipeline.config.recipe import Training\n"
        "print(choose_backend(Training()))\n"
        "try: choose_backend(Training(backend='unsloth'))\n"
        "except PipelineError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "transformers" in done.stdout.splitlines()[0], done.stderr
    assert "training.backend is unsloth, but unsloth is not installed" in done.stdout
    assert "make setup" in done.stdout


@pytest.mark.slow
def test_biases_that_are_trained_are_saved_and_load(inputs: WorkerInputs, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(inputs.base_model, base)
    config = LlamaConfig.from_pretrained(base, attention_bias=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    given = WorkerInputs(base, inputs.examples, inputs.train_tokens, inputs.val_tokens)
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "bias": "all"}
    settings = {"method": "lora", "lora": lora, "precision": "bf16", "max_steps": 6}
    trained = train_here(write_task(given, tmp_path / "run", **settings))
    assert trained.report["adapter_loads"]
    saved = load_file(trained.output / "adapter_model.safetensors")
    biases = [tensor for name, tensor in saved.items() if re.search(r"q_proj\..*bias", name)]
    assert len(biases) == 3
    assert all(bias.abs().max() > 0 for bias in biases)  # they begin at zero


@pytest.mark.slow
def test_a_model_that_scales_its_logits_is_trained_on_its_own_loss(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    base, tokens = tmp_path / "granite", tmp_path / "tokens"
    shutil.copytree(inputs.base_model, base)
    torch.manual_seed(0)
    GraniteForCausalLM(make_granite()).save_pretrained(base)
    records = read_tokens(inputs.train_tokens)[:4]
    tokens.mkdir()
    write_jsonl(tokens / "tokens.jsonl", records)
    given = WorkerInputs(base, inputs.examples, tokens, inputs.val_tokens)
    settings = {"method": "lora", "quantization": "none", "batch_size": 4, "max_steps": 2}
    task = write_task(given, tmp_path / "run", **settings, gradient_accumulation=1, warmup_steps=0)
    found = score(GraniteForCausalLM.from_pretrained(base).eval(), records, pad_id=0)
    expected = sum(r["loss"] for r in found) / sum(r["tokens"] for r in found)
    assert train_here(task).metrics[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_student_is_saved_with_the_tokenizer_that_made_its_tokens(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    """A smaller model of the hub may have no chat template, and another end."""
    student = tmp_path / "student"
    shutil.copytree(inputs.base_model, student)
    (student / "chat_template.jinja").unlink()
    own = AutoTokenizer.from_pretrained(student)
    own.chat_template, own.eos_token = None, "<|endoftext|>"
    own.save_pretrained(student)
    given = WorkerInputs(student, inputs.examples, inputs.train_tokens, inputs.val_tokens)
    config = write_task(given, tmp_path / "run", method="full", quantization="none", max_steps=2)
    task = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**task, "tokenizer_of": str(inputs.base_model)}), "utf-8")
    output = train_here(config).output
    saved, base = (AutoTokenizer.from_pretrained(f) for f in (output, inputs.base_model))
    assert saved.chat_template == base.chat_template
    assert saved.eos_token == "<|im_end|>"
    assert saved.eos_token_id in GenerationConfig.from_pretrained(output).eos_token_id
