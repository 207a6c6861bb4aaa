"""Fine-tuning: asset `finetuned_model`.

Trains a LoRA adapter with trl's SFTTrainer on token records whose prompts are masked. The output
is a peft adapter (`adapter_model.safetensors`, `adapter_config.json`) and the tokenizer. One line
of `meta/metrics.jsonl`:

    {"step": 12, "epoch": 0.15, "loss": 2.31, "learning_rate": 9.1e-4, "grad_norm": 1.2,
     "tokens": 10752, "seconds": 61.4}

`loss` is in nats a trained token, `tokens` counts real (not padding) tokens seen so far.
"""

import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from ft_pipeline.recipe import Training
from ft_pipeline.tasks import TrainTask
from ft_pipeline.worker.backends import (
    Backend,
    choose_backend,
    prepare_with_transformers,
    prepare_with_unsloth,
)
from ft_pipeline.worker.hardware import (
    choose_device,
    choose_dtype,
    describe_hardware,
    peak_memory_mb,
)

METRICS_FILE = "meta/metrics.jsonl"
REPORT_FILE = "meta/report.json"
# transformers' `constant` would leave out the warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

logger = logging.getLogger(__name__)


def run(task: TrainTask) -> dict[str, Any]:
    """Train, save and prove that the adapter loads; return metadata and what was resolved."""
    settings = task.settings
    backend = choose_backend(settings.backend)
    logger.info("back end: %s (%s)", backend.name, backend.reason)
    if backend.name == "unsloth":
        import unsloth  # noqa: F401  (patches transformers and trl, so it has to come first)
    import transformers

    from ft_pipeline.worker.tokens import read_tokens

    dtype = choose_dtype(settings.precision)
    records = read_tokens(task.train_tokens)
    longest = max(len(record["input_ids"]) for record in records)
    transformers.set_seed(settings.seed)
    if backend.name == "unsloth":
        model, tokenizer = prepare_with_unsloth(task.base_model, settings, dtype, longest)
    else:
        model, tokenizer = prepare_with_transformers(task.base_model, settings, dtype)
    initial = _copy_trainable(model)
    (task.output / "meta").mkdir(parents=True, exist_ok=True)
    metrics_file = task.output / METRICS_FILE
    metrics = _train(model, tokenizer, records, settings, dtype, initial, metrics_file)
    report = summarize(metrics, backend, settings, dtype)
    report["adapter_change"] = _measure_change(model, initial)
    report["trainable_parameters"] = sum(p.numel() for p in initial.values())
    _save(model, tokenizer, task)
    report["adapter_loads"] = _loads_again(model, task.output)
    return _write_report(report, metrics, task)


def _train(
    model: Any,
    tokenizer: Any,
    records: list[dict[str, Any]],
    settings: Training,
    dtype: torch.dtype,
    initial: dict[str, torch.Tensor],
    metrics_file: Path,
) -> list[dict[str, Any]]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    from ft_pipeline.worker.progress import MetricsCallback

    columns = {name: [record[name] for record in records] for name in ("input_ids", "labels")}
    with tempfile.TemporaryDirectory(prefix="ft-pipeline-trainer-") as scratch:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict(columns),
            args=_trainer_arguments(settings, dtype, scratch),
        )
        _restore_trainable(model, initial)
        trainer.remove_callback(PrinterCallback)
        callback = MetricsCallback(metrics_file)
        trainer.add_callback(callback)
        trainer.train()
    return callback.metrics


def _trainer_arguments(settings: Training, dtype: torch.dtype, scratch: str) -> Any:
    from trl import SFTConfig

    on_gpu = choose_device() == "cuda"
    optimizer = settings.optimizer
    if optimizer == "adamw_8bit" and not on_gpu:
        logger.warning("optimizer: adamw_8bit needs a GPU; adamw_torch is used instead")
        optimizer = "adamw_torch"
    # Autocast on a CPU with an NF4 base learns badly in silence (docs/decisions.md): there the
    # compute dtype of the base alone decides the precision.
    autocast = on_gpu and dtype != torch.float32
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        optim=optimizer,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=autocast and dtype == torch.bfloat16,
        fp16=autocast and dtype == torch.float16,
        use_cpu=not on_gpu,
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=on_gpu,
    )


def _copy_trainable(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}


def _restore_trainable(model: Any, initial: dict[str, torch.Tensor]) -> None:
    """Undo trl's rounding of the adapter to bf16 (QLoRA only), before the optimizer is made."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = initial[name].clone()


def _measure_change(model: Any, initial: dict[str, torch.Tensor]) -> float:
    """Return the L2 norm of (trained − initial) over all trained parameters."""
    parameters = dict(model.named_parameters())
    squares = [(parameters[n].float() - p.float()).square().sum() for n, p in initial.items()]
    return float(torch.stack(squares).sum().sqrt())


def summarize(
    metrics: list[dict[str, Any]], backend: Backend, settings: Training, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the figures of a run. Losses are means over the first and last tenth of the log."""
    losses = [record["loss"] for record in metrics]
    tenth = max(1, len(losses) // 10)
    last = metrics[-1]
    return {
        "backend": backend.name,
        "backend_reason": backend.reason,
        "method": settings.method,
        "dtype": str(dtype).removeprefix("torch."),
        "steps": last["step"],
        "first_loss": sum(losses[:tenth]) / tenth,
        "final_loss": sum(losses[-tenth:]) / tenth,
        "loss_is_finite": all(math.isfinite(loss) for loss in losses),
        "tokens": last["tokens"],
        "seconds_training": last["seconds"],
        "tokens_per_second": round(last["tokens"] / last["seconds"], 1),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def _save(model: Any, tokenizer: Any, task: TrainTask) -> None:
    """Save adapter and tokenizer; the adapter names the canonical base id and commit."""
    from ft_pipeline.worker.base_model import read_base

    base = read_base(task.base_model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base["id"], base["revision"]
    model.save_pretrained(task.output, safe_serialization=True)
    tokenizer.save_pretrained(task.output)
    _order_target_modules(task.output / "adapter_config.json")
    (task.output / "README.md").unlink(missing_ok=True)  # peft's model card template, unfilled


def _order_target_modules(config_file: Path) -> None:
    """Sort the modules, which peft keeps as a set: equal adapters get equal files."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):  # unsloth may write a pattern
        config["target_modules"].sort()
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _loads_again(model: Any, folder: Path) -> bool:
    """Load the saved adapter beside the trained one with plain peft; compare every tensor."""
    from peft import get_peft_model_state_dict

    trained = get_peft_model_state_dict(model, adapter_name="default")
    model.load_adapter(str(folder), adapter_name="saved")
    saved = get_peft_model_state_dict(model, adapter_name="saved")
    return trained.keys() == saved.keys() and all(
        torch.equal(trained[name].float().cpu(), saved[name].float().cpu()) for name in trained
    )


def _write_report(
    report: dict[str, Any], metrics: list[dict[str, Any]], task: TrainTask
) -> dict[str, Any]:
    from ft_pipeline.worker.plots import plot_loss

    text = json.dumps(report, indent=1)
    (task.output / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    steps = [record["step"] for record in metrics]
    plot_loss(steps, [record["loss"] for record in metrics], task.output / "meta/loss.png")
    resolved = {
        "backend": report["backend"],
        "backend_reason": report["backend_reason"],
        "dtype": report["dtype"],
        "seed": task.settings.seed,
        **describe_hardware(),
    }
    return {"metadata": report, "resolved": resolved}
