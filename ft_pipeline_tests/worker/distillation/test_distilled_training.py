"""Students that learn from a teacher, in the real trainer: the same however it is done."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from ft_pipeline.base.errors import PipelineError
from ft_pipeline.config.recipe import Distillation, Prune
from ft_pipeline.process.tasks import DistillationInputs, ModelSpec, PruneTask, TeacherLogitsTask
from ft_pipeline.worker.distillation import student, teacher_logits
from ft_pipeline.worker.shutdown import GracefulShutdown
from ft_pipeline_tests.worker.conftest import WorkerInputs
from ft_pipeline_tests.worker.tiny_training import Trained, train_again, train_here, write_task
from ft_pipeline_tests.worker.training.test_resume import (
    asked_to_shut_down_at,
    assert_equal,
    kill_at,
)

pytestmark = pytest.mark.slow
FULL = {"method": "full", "learning_rate": 1e-3, "max_grad_norm": 1.0}
WORDS = 800


@pytest.fixture(scope="module")
def pruned(inputs: WorkerInputs, tmp_path_factory: pytest.TempPathFactory) -> WorkerInputs:
    """The inputs of a training with the tiny model of two layers in place of the base."""
    folder = tmp_path_factory.mktemp("student")
    (folder / "meta").mkdir()
    model = ModelSpec(base_model=inputs.base_model, precision="fp32")
    settings = Prune(layers=2, method="first")
    student.run(PruneTask(model=model, settings=settings, output=folder))
    return WorkerInputs(folder, inputs.examples, inputs.train_tokens, inputs.val_tokens)


def teach(inputs: WorkerInputs, folder: Path, **fields: Any) -> DistillationInputs:
    """Return what a student learns from the tiny model: stored (made here), or in the loop."""
    given = {"student": {"prune": {"layers": 2}}, "log_probs": "float32", **fields}
    settings = Distillation.model_validate(given)
    teacher = ModelSpec(base_model=inputs.base_model, precision="fp32")
    if settings.teacher.mode == "online":
        return DistillationInputs(
            settings=settings, vocabulary_of=inputs.base_model, teacher=teacher
        )
    output = folder / "teacher_logits"
    (output / "meta").mkdir(parents=True)
    task = TeacherLogitsTask(
        teacher=teacher,
        vocabulary_of=inputs.base_model,
        train_tokens=inputs.train_tokens,
        val_tokens=inputs.val_tokens,
        k=settings.k,
        temperature=settings.temperature,
        log_probs=settings.log_probs,
        cache=folder / "rows",
        identity={},
        output=output,
    )
    teacher_logits.run(task)
    return DistillationInputs(settings=settings, vocabulary_of=inputs.base_model, logits=output)


def read_losses(trained: Trained) -> torch.Tensor:
    return torch.tensor([record["loss"] for record in trained.metrics if "loss" in record])


def test_all_tokens_stored_train_as_a_teacher_in_the_loop_does(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    stored = teach(inputs, tmp_path, k=WORDS)
    online = teach(inputs, tmp_path, teacher={"mode": "online"})
    for batching in ("plain", "packed"):
        runs = [
            train_here(
                write_task(pruned, tmp_path / f"{batching}{n}", t, batching=batching, **FULL)
            )
            for n, t in enumerate((stored, online))
        ]
        assert torch.allclose(read_losses(runs[0]), read_losses(runs[1]), atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_student_comes_nearer_to_its_teacher(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path, method: str
) -> None:
    distillation = teach(inputs, tmp_path, alpha=0.0, k=64)
    settings = {**FULL, "method": method, "max_steps": 60}
    if method != "full":
        settings["learning_rate"] = 0.02
    trained = train_here(write_task(pruned, tmp_path / "run", distillation, **settings))
    losses = read_losses(trained)
    assert losses[-15:].mean() < losses[:15].mean()
    assert trained.report["adapter_change"] > 0 and trained.report["adapter_loads"]


def test_four_by_one_and_one_by_four_are_one_step(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    distillation = teach(inputs, tmp_path)
    weights = []
    for size in (4, 1):
        # SGD-like: one step of AdamW is a sign, which hides the gradient's size; its norm does not.
        settings = {**FULL, "batch_size": size, "gradient_accumulation": 4 // size, "max_steps": 6}
        trained = train_here(write_task(pruned, tmp_path / str(size), distillation, **settings))
        weights.append([r["grad_norm"] for r in trained.metrics if "grad_norm" in r])
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


@pytest.mark.parametrize("mode", ["stored", "online"])
def test_a_distillation_that_left_ends_as_an_undisturbed_one(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path, mode: str
) -> None:
    distillation = teach(inputs, tmp_path, teacher={"mode": mode})
    settings = {**FULL, "max_steps": 30, "gradient_accumulation": 2, "save_steps": 7}
    settings |= {"batching": "grouped", "schedule": "linear"}
    whole = train_here(write_task(pruned, tmp_path / "whole", distillation, **settings))
    config = write_task(pruned, tmp_path / "left", distillation, **settings)
    with pytest.raises(GracefulShutdown), asked_to_shut_down_at(tmp_path / "left/output", 9):
        train_here(config)
    again = train_here(config)
    assert again.report["resumed_from_step"] >= 9
    assert_equal(again, whole)


def test_a_killed_distillation_ends_as_an_undisturbed_one(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    distillation = teach(inputs, tmp_path)
    settings = {**FULL, "max_steps": 40, "save_steps": 4}
    whole = train_here(write_task(pruned, tmp_path / "whole", distillation, **settings))
    config = write_task(pruned, tmp_path / "killed", distillation, **settings)
    assert kill_at(config, 10) == -signal.SIGKILL
    assert_equal(train_again(config), whole)


def test_the_validation_loss_is_plain_cross_entropy(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    settings = {**FULL, "learning_rate": 1e-9, "max_steps": 2, "eval_steps": 2, "save_steps": 2}
    runs = [
        train_here(write_task(pruned, tmp_path / name, distillation, **settings))
        for name, distillation in (("ce", None), ("kd", teach(inputs, tmp_path)))
    ]
    found = [[r["eval_loss"] for r in run.metrics if "eval_loss" in r] for run in runs]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_teachers_weights_are_as_they_were(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    before = load_file(inputs.base_model / "model.safetensors")
    distillation = teach(inputs, tmp_path, teacher={"mode": "online"})
    train_here(write_task(pruned, tmp_path / "run", distillation, **FULL, max_steps=4))
    after = load_file(inputs.base_model / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_logits_of_other_tokens_end_before_a_model_is_loaded(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distillation = teach(inputs, tmp_path)
    others = WorkerInputs(pruned.base_model, inputs.examples, inputs.val_tokens, inputs.val_tokens)
    monkeypatch.setattr(
        "ft_pipeline.worker.models.loading.load_base", lambda *_: pytest.fail("a model was loaded")
    )
    with pytest.raises(PipelineError, match="no answers for example"):
        train_here(write_task(others, tmp_path / "run", distillation, **FULL))
    assert os.listdir(tmp_path / "run/output") == ["meta"]


def test_a_student_with_soft_capped_logits_is_refused(
    inputs: WorkerInputs, pruned: WorkerInputs, tmp_path: Path
) -> None:
    """Gemma 2 caps its logits behind the head, where the loss from hidden states would miss it."""
    capped = tmp_path / "gemma"
    shutil.copytree(pruned.base_model, capped)
    config = Gemma2Config(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(capped)
    given = WorkerInputs(capped, inputs.examples, inputs.train_tokens, inputs.val_tokens)
    task = write_task(given, tmp_path / "run", teach(inputs, tmp_path), **FULL)
    with pytest.raises(PipelineError, match=r"Gemma2ForCausalLM changes its logits"):
        train_here(task)
