"""Too little memory: the fallbacks of smaller forward passes, and the estimate before the start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ft_pipeline.base.jsonl import write_jsonl
from ft_pipeline.config.recipe import Training
from ft_pipeline.graph.estimate import (
    count_parameters,
    count_trainable,
    estimate_training,
    read_sizes,
)
from ft_pipeline.worker.training.memory import Fallback, is_out_of_memory, list_fallbacks
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.tiny_training import SETTINGS, Trained, train_here, write_task


@pytest.mark.parametrize(
    ("settings", "fallbacks"),
    [
        ((4, 4), [(4, 4), (2, 8), (1, 16), (1, 16)]),
        ((6, 1), [(6, 1), (3, 2), (1, 6), (1, 6)]),
        ((1, 8), [(1, 8), (1, 8)]),
    ],
)
def test_each_fallback_has_the_effective_batch(
    settings: tuple[int, int], fallbacks: list[tuple[int, int]]
) -> None:
    size, accumulation = settings
    found = list_fallbacks(Training(batch_size=size, gradient_accumulation=accumulation))
    assert [
        (fallback.batch_size, fallback.gradient_accumulation) for fallback in found
    ] == fallbacks
    assert [fallback.gradient_checkpointing for fallback in found] == [False] * (
        len(fallbacks) - 1
    ) + [True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_errors_of_too_little_memory_are_known_by_what_they_say(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == expected


def test_a_resumed_training_begins_with_the_fallback_of_its_checkpoint() -> None:
    settings = Training(batch_size=4, gradient_accumulation=4)
    assert list_fallbacks(settings, Fallback(1, 16, False)) == [
        Fallback(1, 16, False),
        Fallback(1, 16, True),
    ]


LIMITED = """
import resource, sys
import ft_pipeline.worker.models.loading, ft_pipeline.worker.training.session, peft.tuners.lora
import ft_pipeline.worker.plots, ft_pipeline.worker.data.tokens
import torch._dynamo, email.parser
import transformers.models.llama.modeling_llama, transformers.models.auto.tokenization_auto
import torchao.quantization, importlib.metadata, numpy
importlib.metadata.version("bitsandbytes")
numpy.ones((64, 64)) @ numpy.ones((64, 64))  # OpenBLAS takes its buffers now, or ends the process
from ft_pipeline.worker.__main__ import main
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
limit = now + int(sys.argv.pop(1)) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main())
"""


def train_limited(config: Path, megabytes: int) -> tuple[int, str]:
    """Train in a child that gets so much more address space once its libraries are there."""
    command = [sys.executable, "-c", LIMITED, str(megabytes), "train", "--config", str(config)]
    # An arena of glibc reserves 64 MB of addresses for each thread; when is not ours to say.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    return done.returncode, done.stderr


@pytest.fixture
def long_inputs(inputs: WorkerInputs, tmp_path: Path) -> WorkerInputs:
    return write_long_examples(inputs, tmp_path, 900)


def write_long_examples(inputs: WorkerInputs, tmp_path: Path, length: int) -> WorkerInputs:
    """64 examples of so many tokens each."""
    tokens = tmp_path / f"tokens{length}"
    tokens.mkdir()
    records = [
        {
            "example_id": f"example{n}",
            "task": "quiz_question",
            "input_ids": [1, *((7 * n + i) % 700 + 50 for i in range(length - 2)), 2],
            "labels": [-100] * 100 + [(7 * n + i) % 700 + 50 for i in range(length - 101)] + [2],
        }
        for n in range(64)
    ]
    write_jsonl(tokens / "tokens.jsonl", records)
    return WorkerInputs(inputs.base_model, {}, tokens, inputs.val_tokens)


# One precision on every machine: the limits below are set for its bytes.
LADDER: dict[str, Any] = {
    "batch_size": 32,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "precision": "fp32",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux' rlimit")
def test_a_training_that_does_not_fit_falls_back_to_smaller_passes(
    long_inputs: WorkerInputs, tmp_path: Path
) -> None:
    whole = train_here(write_task(long_inputs, tmp_path / "whole", **LADDER))
    config = write_task(long_inputs, tmp_path / "small", **LADDER)
    code, log = train_limited(config, 700)
    assert code == 0, log[-3000:]
    report = Trained(tmp_path / "small", 0, log).report
    outcomes = [fallback["outcome"] for fallback in report["memory_fallbacks"]]
    assert outcomes[0] == "out of memory"
    assert outcomes[-1] == "fits"
    assert report["batch_size"] * report["gradient_accumulation"] == 32
    assert report["batch_size"] < 32
    # The same steps: only the order of sums differs.
    assert report["final_loss"] == pytest.approx(whole.report["final_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux' rlimit")
def test_a_training_that_fits_by_no_fallback_shows_what_was_tried(
    inputs: WorkerInputs, tmp_path: Path
) -> None:
    longer = write_long_examples(inputs, tmp_path, 2000)
    config = write_task(longer, tmp_path / "run", **LADDER | {"batch_size": 2})
    code, log = train_limited(config, 100)
    assert code == 1, log[-3000:]
    assert "this training does not fit into memory. Tried:" in log
    assert "    1             2         yes  out of memory" in log


def test_the_estimate_counts_the_parameters_that_there_are(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    assert sum(count_parameters(config)) == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "dora", "lora": {"r": 4, "alpha": 8, "target_modules": "attention"}},
        {"method": "lora", "lora": {"r": 2, "alpha": 8, "layers": [1, 2]}},
        {"method": "bottleneck", "bottleneck": {"size": 8}},
        {"method": "full"},
    ],
    ids=lambda settings: str(settings["method"]),
)
def test_the_estimate_counts_the_trained_weights_that_there_are(
    inputs: WorkerInputs, tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trained = train_here(write_task(inputs, tmp_path, max_steps=2, **settings))
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    expected = count_trainable(Training.model_validate(SETTINGS | settings), config)
    assert trained.report["trainable_parameters"] == expected


GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
NESTED = {"text_config": {**GPT2, "hidden_size": 640}, "vision_config": {"hidden_size": 1152}}


@pytest.mark.parametrize(
    ("config", "width", "inner"), [(GPT2, 768, 3072), (NESTED, 640, 2560), ({"dim": 3}, None, 0)]
)
def test_sizes_are_read_whatever_a_family_calls_them(
    config: dict[str, Any], width: int | None, inner: int
) -> None:
    found = read_sizes(config)
    if width is None:
        assert found is None
        return
    assert found is not None
    assert (found["hidden_size"], found["intermediate_size"]) == (width, inner)
    report = {"max": 100, "trained_tokens": 50, "tokens": 100, "kept": 1}
    assert estimate_training(Training(), found, report, 1, "bf16").total_mb > 100


def test_less_memory_is_estimated_for_what_takes_less(tiny_model: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    tokens = {"max": 500, "tokens": 40_000, "trained_tokens": 20_000, "kept": 200}

    def megabytes(**settings: Any) -> float:
        chosen = Training.model_validate(settings)
        return estimate_training(chosen, config, tokens, 100, "fp32").total_mb

    assert megabytes(method="qlora") < megabytes(method="lora") < megabytes(method="full")
    assert (
        megabytes(gradient_checkpointing=True) < megabytes(batch_size=4) < megabytes(batch_size=9)
    )
